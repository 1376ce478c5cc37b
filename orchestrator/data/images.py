"""Encoded pictures -> squares of uint8 pixels: the one definition that training, evaluation and serving share.

Shapes: R pixels a side of the square, 3 channels red, green, blue. Neither torch nor Ray is imported here: decode
workers start quickly.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# The plug-ins that a picture from the web may reach; Pillow has others, such as EPS, which runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Fast decoding keeps at least this many decoded pixels for each pixel of the result, along a side.
FAST_MARGIN = 1.5

_ORIENT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A picture that cannot be used.

    Parameters
    ----------
    reason : truncated_image, undecodable_image or too_many_pixels
    detail : what was found, for a person to read
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class ImageTransform:
    """What happens to a picture before the image tower sees it.

    Every picture becomes RGB: transparency is laid over white, 16-bit grey is scaled to 8 bits, EXIF orientation is
    applied, of an animation the first frame is taken. Colour profiles are ignored, as CLIP ignores them.

    Parameters
    ----------
    image_size : R, pixels a side of the square
    crop_scale : least share of the largest square's area that a training crop keeps, in (0, 1]
    jpeg_decode : exact (every pixel is decoded and resized as Pillow does, to the bit) or fast (a JPEG of at least 3
        pixels for each of the result, along a side, is decoded at 1/2, 1/4 or 1/8 of its size, see `_draft`. At R = 224
        photographs of up to 0.5 megapixels are the same; of 0.8 to 12, 1.5 to 8.5 times as fast with a mean absolute
        difference of 0.3 to 0.7 of 255); other formats are always exact
    max_pixels : largest picture accepted, in pixels, known from its header before it is decoded; Pillow itself refuses
        what has more than 178,956,970
    mean, std : of each channel in [0, 1], for whoever normalises the pixels on the device
    """

    image_size: int = 224
    crop_scale: float = 0.9
    jpeg_decode: Literal["exact", "fast"] = "exact"
    max_pixels: int = 100_000_000
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def train(self, data: bytes, rng: np.random.Generator, out: np.ndarray | None = None) -> np.ndarray:
        """A random square of the picture, resized (bicubic, antialiased): the paper's only augmentation.

        Parameters
        ----------
        data : the encoded picture
        rng : three numbers are drawn: the square's side, sqrt(uniform(crop_scale, 1)) of the shorter side, and its
            place. Both kinds of `jpeg_decode` cut the same square
        out : uint8 (3, R, R), contiguous, to write into; None: a new array

        Returns
        -------
        uint8 (3, R, R)

        Raises
        ------
        ImageError

        Source: Radford et al. 2021, section 2.4; the range of areas is open_clip's default.
        """
        R = self.image_size
        with _Source(data, self.max_pixels) as source:
            width, height = source.image.size
            side = max(1, round(math.sqrt(rng.uniform(self.crop_scale, 1.0)) * min(width, height)))
            left = int(rng.integers(width - side, endpoint=True))
            top = int(rng.integers(height - side, endpoint=True))
            scale = self._decode(source, side / R)
            box = (left * scale, top * scale, (left + side) * scale, (top + side) * scale)
            square = np.empty((3, R, R), np.uint8) if out is None else out
            _resize(to_rgb(source.image), box, (R, R), (0, 0), square)
            if source.orientation != 1:
                upright = _orient(Image.fromarray(square.transpose(1, 2, 0)), source.orientation)
                square[:] = np.asarray(upright).transpose(2, 0, 1)
            return square

    def evaluate(self, data: bytes) -> np.ndarray:
        """The shorter side resized to R (bicubic, antialiased), then the square in the centre: what CLIP does.

        Parameters
        ----------
        data : the encoded picture

        Returns
        -------
        uint8 (3, R, R)

        Raises
        ------
        ImageError

        Source: `_transform` of the released code, with torchvision's rounding.
        """
        R = self.image_size
        with _Source(data, self.max_pixels) as source:
            width, height = source.image.size
            if source.orientation >= 5:
                width, height = height, width
            short = min(width, height)
            size = (int(R * width / short), int(R * height / short))
            corner = (round((size[0] - R) / 2), round((size[1] - R) / 2))
            scale = self._decode(source, short / R)
            whole = (0, 0, width * scale, height * scale)
            upright = _orient(to_rgb(source.image), source.orientation)
            return _resize(upright, whole, size, corner, np.empty((3, R, R), np.uint8))

    def _decode(self, source: _Source, ratio: float) -> float:
        """Decode the picture, `ratio` pixels for each of the result: the scale at which it was decoded."""
        scale = _draft(source.image, ratio) if self.jpeg_decode == "fast" and source.is_jpeg else 1.0
        source.image.load()
        return scale

    def to_dict(self) -> dict[str, Any]:
        """The evaluation transform in the words of Hugging Face's preprocessor_config.json."""
        R = self.image_size
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": R},
            "resample": int(Image.Resampling.BICUBIC),
            "do_center_crop": True,
            "crop_size": {"height": R, "width": R},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_dict(cls, config: dict[str, Any], **options: Any) -> ImageTransform:
        """The transform that a preprocessor_config.json describes.

        Parameters
        ----------
        config : the file's content, as CLIP's published models carry it (older ones have plain numbers for sizes)
        options : crop_scale, jpeg_decode, max_pixels, which the file does not hold

        Raises
        ------
        ValueError: the file describes something that is not CLIP's transform; the message names the key
        """
        for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not config.get(key, True):
                raise ValueError(f"preprocessor_config.json: {key} is false; CLIP's transform needs it true")
        if config.get("resample", 3) != Image.Resampling.BICUBIC:
            raise ValueError(f"preprocessor_config.json: resample is {config['resample']}; CLIP's is 3 (bicubic)")
        size = config.get("size", 224)
        crop = config.get("crop_size", size)
        sides = {size["shortest_edge"] if isinstance(size, dict) and "shortest_edge" in size else size}
        sides = {s for side in sides for s in (side.values() if isinstance(side, dict) else [side])}
        sides |= set(crop.values() if isinstance(crop, dict) else [crop])
        if len(sides) != 1:
            raise ValueError(f"preprocessor_config.json: size {size} and crop_size {crop} must be one square")
        red, green, blue = config.get("image_mean", CLIP_MEAN)
        red_std, green_std, blue_std = config.get("image_std", CLIP_STD)
        return cls(image_size=sides.pop(), mean=(red, green, blue), std=(red_std, green_std, blue_std), **options)


def decode_rgb(data: bytes, max_pixels: int = 100_000_000) -> Image.Image:
    """A picture as `ImageTransform` sees it before it is resized, for whoever resizes otherwise.

    Raises
    ------
    ImageError
    """
    with _Source(data, max_pixels) as source:
        source.image.load()
        return _orient(to_rgb(source.image), source.orientation)
    raise AssertionError("unreachable")


class _Source:
    """An encoded picture with its header read; as a context manager it turns any failure inside into an ImageError."""

    def __init__(self, data: bytes, max_pixels: int):
        self.data = data
        self.max_pixels = max_pixels
        self.orientation = 1

    def __enter__(self) -> _Source:
        try:
            self.image: Image.Image = Image.open(io.BytesIO(self.data), formats=FORMATS)
            width, height = self.image.size
            if width * height > self.max_pixels:
                raise ImageError("too_many_pixels", f"{width}x{height} is more than {self.max_pixels} pixels")
            self.is_jpeg = self.image.format in ("JPEG", "MPO")
            if not self.is_jpeg:
                self.image.load()  # a PNG may keep its EXIF after its pixels
            self.orientation = _orientation(self.image)
        except Exception as error:
            raise self._explain(error) from error
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # Pillow's decoders raise whatever broke them: OSError, SyntaxError, struct.error, IndexError, ...
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> ImageError:
        if isinstance(error, ImageError):
            return error
        detail = f"{type(error).__name__}: {error}"
        if isinstance(error, Image.DecompressionBombError):
            return ImageError("too_many_pixels", detail)
        return ImageError("truncated_image" if _is_cut_short(self.data) else "undecodable_image", detail)


def _is_cut_short(data: bytes) -> bool:
    """Whether a picture stops before its end marker; Pillow words this differently for every format."""
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in data[-64:]
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in data[-64:]
    if data.startswith(b"RIFF"):
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if data.startswith(b"GIF8"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"BM"):
        return len(data) < int.from_bytes(data[2:6], "little")
    return False


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or its block is broken, which harms no pixel."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if value in _ORIENT else 1


def _orient(image: Image.Image, orientation: int) -> Image.Image:
    return image if orientation == 1 else image.transpose(_ORIENT[orientation])


def _resize(
    image: Image.Image, box: tuple, size: tuple[int, int], corner: tuple[int, int], out: np.ndarray
) -> np.ndarray:
    """`resize_bicubic`, whose compiler only processes that decode need load; it takes a quarter of a second."""
    from orchestrator.data.resize import resize_bicubic

    return resize_bicubic(image, box, size, corner, out)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any colour mode -> RGB of 8 bits, transparency over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        return over.convert("RGB")
    return image.convert("RGB")


def _draft(image: Image.Image, ratio: float) -> float:
    """Have libjpeg-turbo decode a JPEG at 1/2, 1/4 or 1/8 of its size, where enough pixels stay; returns that scale.

    Parameters
    ----------
    image : opened and not decoded
    ratio : pixels of the full picture for each pixel of the result, along a side; FAST_MARGIN of them are kept
    """
    factor = 1
    while factor < 8 and ratio / (2 * factor) >= FAST_MARGIN:
        factor *= 2
    width, height = image.size
    drafted = image.draft(image.mode, (width // factor, height // factor)) if factor > 1 else None
    return drafted[1][2] / width if drafted else 1.0
