"""Every kind of picture against a direct Pillow computation, and every kind of damage against its reason."""

import io
import math
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from orchestrator.data.images import ImageError, ImageTransform

R = 32


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def scene(width: int = 60, height: int = 45) -> np.ndarray:
    """Smooth, different in every corner and channel: a wrong turn or a swapped channel shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin(x * y / 200)], axis=2).astype(np.uint8)


def direct_evaluate(rgb: Image.Image, side: int = R) -> np.ndarray:
    short = min(rgb.size)
    resized = rgb.resize((int(side * rgb.width / short), int(side * rgb.height / short)), Image.Resampling.BICUBIC)
    left, top = round((resized.width - side) / 2), round((resized.height - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side))).transpose(2, 0, 1)


def direct_train(rgb: Image.Image, seed: int, crop_scale: float, side: int = R) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cut = round(math.sqrt(rng.uniform(crop_scale, 1)) * min(rgb.size))
    left = int(rng.integers(rgb.width - cut + 1))
    top = int(rng.integers(rgb.height - cut + 1))
    cropped = rgb.crop((left, top, left + cut, top + cut))
    return np.asarray(cropped.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    datasets = pytest.importorskip("sklearn.datasets")
    return [Image.fromarray(datasets.load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


@pytest.mark.parametrize("size", [(60, 45), (45, 60), (33, 32), (10, 7), (1, 1), (300, 20)])
def test_evaluate_is_resize_and_centre_crop(size):
    rgb = Image.fromarray(scene(*size))
    got = ImageTransform(R).evaluate(encode(rgb))
    assert got.shape == (3, R, R)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, direct_evaluate(rgb))


@pytest.mark.parametrize("seed", range(5))
def test_train_is_a_random_square(seed):
    rgb = Image.fromarray(scene())
    got = ImageTransform(R, crop_scale=0.3).train(encode(rgb), np.random.default_rng(seed))
    np.testing.assert_array_equal(got, direct_train(rgb, seed, 0.3))


def test_train_of_a_square_picture_with_no_freedom_is_the_whole_picture():
    rgb = Image.fromarray(scene(50, 50))
    got = ImageTransform(R, crop_scale=1.0).train(encode(rgb), np.random.default_rng(0))
    np.testing.assert_array_equal(got, direct_evaluate(rgb))


def over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def modes():
    rgb = Image.fromarray(scene())
    grey = np.asarray(rgb.convert("L"))
    alpha = np.linspace(0, 255, 60).astype(np.uint8)[None].repeat(45, 0)
    rgba = np.dstack([scene(), alpha])
    palette = rgb.quantize(64)
    see_through = rgb.quantize(64)
    see_through.info["transparency"] = 5
    hole = np.where((np.asarray(see_through) == 5)[..., None], 255, np.asarray(see_through.convert("RGB")))
    deep = (np.arange(60 * 45).reshape(45, 60) * 24).astype(np.uint16)  # up to 64,776
    key = tuple(int(v) for v in scene()[10, 10])
    keyed = np.where((scene() == key).all(axis=2, keepdims=True), 255, scene())
    cmyk = rgb.convert("CMYK")
    yield "RGB", encode(rgb), np.asarray(rgb), 0
    yield "palette", encode(palette), np.asarray(palette.convert("RGB")), 0
    yield "palette with transparency", encode(see_through), hole, 0
    yield "RGBA", encode(Image.fromarray(rgba)), over_white(rgba), 1
    yield "RGBA WebP", encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), over_white(rgba), 1
    grey_alpha = np.dstack([grey, grey, grey, alpha])
    yield "LA", encode(Image.fromarray(np.dstack([grey, alpha]), "LA")), over_white(grey_alpha), 1
    yield "RGB with a transparent colour", encode(rgb, transparency=key), keyed, 0
    yield "grey", encode(Image.fromarray(grey)), np.dstack([grey] * 3), 0
    yield "1 bit", encode(rgb.convert("1")), np.dstack([np.asarray(rgb.convert("1")) * 255] * 3), 0
    yield "16-bit grey", encode(Image.fromarray(deep)), np.dstack([np.rint(deep / 257)] * 3), 0
    yield "CMYK JPEG", encode(cmyk, "JPEG", quality=100), np.asarray(cmyk.convert("RGB")), 6
    yield "grey JPEG", encode(Image.fromarray(grey), "JPEG", quality=100), np.dstack([grey] * 3), 3
    yield "GIF", encode(palette, "GIF"), np.asarray(palette.convert("RGB")), 0
    yield "BMP", encode(rgb, "BMP"), np.asarray(rgb), 0


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize(("name", "data", "expected", "tolerance"), list(modes()), ids=[m[0] for m in modes()])
def test_colour_modes(name, data, expected, tolerance, decode):
    rgb = Image.fromarray(np.rint(expected).astype(np.uint8))
    transform = ImageTransform(R, crop_scale=0.3, jpeg_decode=decode)
    for got, want in [
        (transform.evaluate(data), direct_evaluate(rgb)),
        (transform.train(data, np.random.default_rng(3)), direct_train(rgb, 3, 0.3)),
    ]:
        assert np.abs(got.astype(int) - want).max() <= tolerance + (decode == "fast" and "JPEG" in name) * 8


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(orientation, decode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(scene(400, 250)), "JPEG", quality=95, exif=exif)
    stored = Image.open(io.BytesIO(data))
    upright = ImageOps.exif_transpose(stored).convert("RGB")
    transform = ImageTransform(R, crop_scale=1.0, jpeg_decode=decode)
    got = transform.evaluate(data).astype(int)
    assert np.abs(got - direct_evaluate(upright)).mean() <= (0 if decode == "exact" else 2)
    # The training crop is drawn in the stored picture and turned afterwards.
    crop = Image.fromarray(direct_train(stored, 1, 1.0).transpose(1, 2, 0))
    crop.getexif()[0x0112] = orientation
    want = np.asarray(ImageOps.exif_transpose(crop)).transpose(2, 0, 1)
    got = transform.train(data, np.random.default_rng(1)).astype(int)
    assert np.abs(got - want).mean() <= (0 if decode == "exact" else 2)


def test_exif_orientation_of_a_png():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(scene())
    got = ImageTransform(R).evaluate(encode(image, exif=exif))
    np.testing.assert_array_equal(got, direct_evaluate(image.transpose(Image.Transpose.ROTATE_270)))


def test_a_broken_exif_block_harms_nothing():
    image = Image.fromarray(scene())
    data = encode(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(
        ImageTransform(R).evaluate(data), direct_evaluate(Image.open(io.BytesIO(encode(image, "JPEG"))))
    )


def test_fast_jpeg_decode_is_pillows_draft_and_resize(photographs):
    data = encode(photographs[0].resize((801, 535)), "JPEG", quality=90)
    half = Image.open(io.BytesIO(data))
    half.draft("RGB", (400, 267))
    assert half.size == (401, 268)
    transform = ImageTransform(96, crop_scale=0.5, jpeg_decode="fast")

    whole = half.resize((143, 96), Image.Resampling.BICUBIC, box=(0, 0, 400.5, 267.5))
    np.testing.assert_array_equal(transform.evaluate(data), np.asarray(whole.crop((24, 0, 120, 96))).transpose(2, 0, 1))

    side, rng = round(math.sqrt(np.random.default_rng(4).uniform(0.5, 1)) * 535), np.random.default_rng(4)
    rng.uniform()
    left, top = int(rng.integers(801 - side + 1)) / 2, int(rng.integers(535 - side + 1)) / 2
    cut = (math.floor(left), math.floor(top), math.ceil(left + side / 2), math.ceil(top + side / 2))
    place = (left - cut[0], top - cut[1], left + side / 2 - cut[0], top + side / 2 - cut[1])
    square = half.crop(cut).resize((96, 96), Image.Resampling.BICUBIC, box=place)
    got = transform.train(data, np.random.default_rng(4))
    np.testing.assert_array_equal(got, np.asarray(square).transpose(2, 0, 1))


@pytest.mark.parametrize(("megapixels", "bound"), [(0.3, 0), (0.5, 0), (0.8, 1.0), (2.0, 1.0), (4.0, 1.0)])
def test_fast_jpeg_decode_stays_near_the_exact_picture(photographs, megapixels, bound):
    exact, fast = (ImageTransform(224, jpeg_decode=decode) for decode in ("exact", "fast"))
    for seed, photograph in enumerate(photographs):
        scale = math.sqrt(megapixels * 1e6 / (photograph.width * photograph.height))
        resized = photograph.resize((round(photograph.width * scale), round(photograph.height * scale)))
        data = encode(resized, "JPEG", quality=90)
        pairs = [(exact.evaluate(data), fast.evaluate(data))]
        pairs += [tuple(t.train(data, np.random.default_rng(seed)) for t in (exact, fast))]
        for want, got in pairs:
            difference = np.abs(want.astype(int) - got).mean()
            assert 0 < difference < bound or difference == bound == 0


def test_fast_decode_cuts_the_same_square_at_every_scale(photographs):
    """A picture moved by one pixel of the result would differ far more than the bound."""
    data = encode(photographs[0].resize((1601, 1067)), "JPEG", quality=90)
    for side in (48, 96, 224, 448):
        exact, fast = (ImageTransform(side, crop_scale=0.2, jpeg_decode=d) for d in ("exact", "fast"))
        for seed in range(3):
            want, got = (t.train(data, np.random.default_rng(seed)).astype(int) for t in (exact, fast))
            error = np.abs(want - got).mean()
            assert error < 1.5
            assert error < 0.3 * np.abs(want[:, :, 1:] - got[:, :, :-1]).mean()


def damaged():
    whole = {
        "JPEG": encode(Image.fromarray(scene()), "JPEG"),
        "progressive JPEG": encode(Image.fromarray(scene()), "JPEG", progressive=True),
        "PNG": encode(Image.fromarray(scene())),
        "WebP": encode(Image.fromarray(scene()), "WEBP"),
        "BMP": encode(Image.fromarray(scene()), "BMP"),
    }
    for name, data in whole.items():
        for share in (0.2, 0.5, 0.9):
            yield f"{name} {share}", data[: int(len(data) * share)], "truncated_image"
    yield "empty", b"", "undecodable_image"
    yield "text", b"<html>404 Not Found</html>", "undecodable_image"
    yield "signature", b"\xff\xd8\xff\xe0 and no more\xff\xd9", "undecodable_image"
    png = bytearray(whole["PNG"])
    png[60] ^= 0xFF
    yield "PNG with a wrong checksum", bytes(png), "undecodable_image"
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "undecodable_image"


@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize(("name", "data", "reason"), list(damaged()), ids=[d[0] for d in damaged()])
def test_damage_is_named(name, data, reason, decode):
    transform = ImageTransform(R, jpeg_decode=decode)
    for use in (transform.evaluate, lambda data: transform.train(data, np.random.default_rng(0))):
        with pytest.raises(ImageError) as caught:
            use(data)
        assert caught.value.reason == reason
        assert reason in str(caught.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds no pixels: whoever decodes it fails otherwise than by its size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1001, 1000), (60_000, 60_000)])
def test_a_picture_too_large_is_refused_by_its_header(size):
    with pytest.raises(ImageError) as caught:
        ImageTransform(R, max_pixels=1_000_000).evaluate(bomb(*size))
    assert caught.value.reason == "too_many_pixels"


def test_the_limit_itself_is_accepted():
    data = encode(Image.fromarray(scene(40, 30)))
    ImageTransform(R, max_pixels=R * 42).evaluate(data)
    with pytest.raises(ImageError, match="too_many_pixels"):
        ImageTransform(R, max_pixels=40 * 30 - 1).evaluate(data)


def test_a_thread_does_not_become_a_bomb_when_resized():
    """Resized, it has 51 million pixels: nobody looks at more than the square in the middle of them."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1, 50_000, 3), dtype=np.uint8))
    got = ImageTransform(R, max_pixels=1_000_000).evaluate(encode(rgb))
    np.testing.assert_array_equal(got, direct_evaluate(rgb))


def test_error_travels_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("truncated_image", "half")))
    assert (error.reason, error.detail) == ("truncated_image", "half")


def test_preprocessor_config_round_trip():
    transform = ImageTransform(96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    again = ImageTransform.from_dict(transform.to_dict(), crop_scale=0.5, jpeg_decode="fast", max_pixels=7)
    assert again == ImageTransform(96, 0.5, "fast", 7, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_the_older_preprocessor_config_of_published_models():
    older = {"crop_size": 336, "size": 336, "resample": 3, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    assert ImageTransform.from_dict(older).image_size == 336


@pytest.mark.parametrize(
    "change", [{"resample": 2}, {"do_center_crop": False}, {"crop_size": {"height": 7, "width": 7}}]
)
def test_another_transform_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ImageTransform.from_dict({**ImageTransform(R).to_dict(), **change})


def test_equal_to_hugging_face(photographs):
    from transformers import CLIPImageProcessorPil

    transform = ImageTransform(224)
    processor = CLIPImageProcessorPil(**transform.to_dict())
    # 640x426 becomes 336 wide: where the margin is odd, Hugging Face rounds it down and CLIP to the nearest.
    photograph = photographs[0].crop((0, 0, 640, 426))
    theirs = processor(photograph, return_tensors="np")["pixel_values"][0]
    mean, std = (np.array(v)[:, None, None] for v in (transform.mean, transform.std))
    ours = (transform.evaluate(encode(photograph)) / 255 - mean) / std
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_decode_workers_do_not_import_torch_or_ray():
    code = "import sys, orchestrator.data.images; sys.exit(any(m in sys.modules for m in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_who_does_not_decode_does_not_load_the_compiler_of_the_resize():
    """Every driver, controller and trainer knows the transform; loading numba takes each a quarter of a second."""
    code = "import sys, orchestrator.train.loop; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
