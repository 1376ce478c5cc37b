"""Pictures of every kind and of every kind of damage: pixels or a refusal, and nothing else."""

import base64
import io
import random
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from orchestrator.data.images import ImageTransform
from serving import pictures
from serving.errors import RequestError
from serving.pictures import decode_base64, prepare
from serving.settings import Limits

R = 16
TRANSFORM = ImageTransform(R)
LIMITS = Limits()


def encode(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def scene(width: int = 40, height: int = 24) -> Image.Image:
    """Smooth, and different in every corner and channel."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin(x * y / 100)], axis=2).astype(np.uint8)
    )


def pixels(image: Image.Image) -> np.ndarray:
    """What Pillow alone makes of an RGB picture."""
    short = min(image.size)
    width, height = int(R * image.width / short), int(R * image.height / short)
    left, top = round((width - R) / 2), round((height - R) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + R, top + R))).transpose(2, 0, 1)


def refusal(data: bytes, limits: Limits = LIMITS) -> RequestError:
    with pytest.raises(RequestError) as raised:
        prepare(data, "images[3]", TRANSFORM, limits)
    assert raised.value.field == "images[3]"
    return raised.value


def kinds():
    rgb, grey = scene(), scene().convert("L")
    alpha = np.linspace(0, 255, 40).astype(np.uint8)[None].repeat(24, 0)
    rgba = Image.fromarray(np.dstack([np.asarray(rgb), alpha]))
    share = alpha[..., None] / 255
    over_white = Image.fromarray(np.rint(np.asarray(rgb) * share + 255 * (1 - share)).astype(np.uint8))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    other = Image.new("RGB", rgb.size, "red")
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = encode(rgb, "JPEG", quality=95)
    yield "JPEG", jpeg, Image.open(io.BytesIO(jpeg)), 0
    yield "PNG", encode(rgb, "PNG"), rgb, 0
    yield "WebP", encode(rgb, "WEBP", lossless=True), rgb, 0
    yield "GIF", encode(rgb.quantize(64), "GIF"), rgb.quantize(64).convert("RGB"), 0
    yield "BMP", encode(rgb, "BMP"), rgb, 0
    yield "transparent", encode(rgba, "PNG"), over_white, 1
    yield "16 bits", encode(deep, "PNG"), grey.convert("RGB"), 0
    yield "CMYK", encode(rgb.convert("CMYK"), "JPEG", quality=100), rgb, 6
    yield "EXIF", encode(rgb, "PNG", exif=turned), rgb.transpose(Image.Transpose.ROTATE_270), 0
    more = {"save_all": True, "append_images": [other, other], "duration": 50}
    yield "animated GIF", encode(rgb.quantize(64), "GIF", **more), rgb.quantize(64).convert("RGB"), 0
    yield "animated WebP", encode(rgb, "WEBP", lossless=True, **more), rgb, 0
    yield "animated PNG", encode(rgb, "PNG", **more), rgb, 0


@pytest.mark.parametrize(("kind", "data", "upright", "tolerance"), list(kinds()), ids=[kind[0] for kind in kinds()])
def test_every_kind_of_picture(kind, data, upright, tolerance):
    got = prepare(data, "image", TRANSFORM, LIMITS)
    assert (got.dtype, got.shape) == (np.uint8, (3, R, R))
    assert np.abs(got.astype(int) - pixels(upright)).max() <= tolerance


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"a cat on a mat",
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"\x00",
        encode(scene(), "TIFF"),
        encode(scene(), "ICO"),
        encode(scene(), "EPS"),
    ],
    ids=["svg", "pdf", "text", "heic", "wav", "nul", "tiff", "ico", "eps"],
)
def test_what_is_no_picture_is_told_what_is_read(data):
    error = refusal(data)
    assert error.status == 415
    assert "JPEG, PNG, WebP, GIF and BMP are read" in error.message


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_picture_cut_short_or_emptied(format):
    data = encode(scene(), format)
    for length in (1, 2, 4, 9, len(data) // 4, len(data) * 3 // 4):
        assert refusal(data[:length]).status == 422
    assert "cut short" in refusal(data[: len(data) * 3 // 4]).message
    assert "empty" in refusal(b"").message and refusal(b"").status == 422


def test_a_damaged_picture():
    data = bytearray(encode(scene(), "PNG"))
    data[data.index(b"IDAT") + 8] ^= 0xFF
    error = refusal(bytes(data))
    assert error.status == 422 and "damaged" in error.message


def test_too_many_bytes():
    data = encode(scene(), "PNG")
    assert prepare(data, "image", TRANSFORM, Limits(image_bytes=len(data))).shape == (3, R, R)
    error = refusal(data, Limits(image_bytes=len(data) - 1))
    assert error.status == 413 and f"{len(data) - 1} bytes" in error.message


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_too_many_pixels(format):
    data = encode(scene(), format)
    assert prepare(data, "image", TRANSFORM, Limits(image_pixels=40 * 24)).shape == (3, R, R)
    error = refusal(data, Limits(image_pixels=40 * 24 - 1))
    assert error.status == 413 and f"{40 * 24 - 1} pixels" in error.message


def bombs():
    """Small files of 60,000 x 60,000 pixels, or of WebP's largest."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    png = encode(scene(), "PNG")
    yield "PNG", png[:16] + header + crc + png[33:]
    gif = bytearray(encode(scene().quantize(16), "GIF"))
    place = gif.index(b"\x2c")
    gif[place + 5 : place + 9] = struct.pack("<HH", 60_000, 60_000)  # the frame outgrows the screen
    yield "GIF", bytes(gif)
    jpeg = bytearray(encode(scene(), "JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    yield "JPEG", bytes(jpeg)
    bmp = bytearray(encode(scene(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield "BMP", bytes(bmp)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + encode(scene(), "WEBP")[12:]
    yield "WebP", b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(("kind", "data"), list(bombs()), ids=[kind for kind, _ in bombs()])
def test_a_bomb_is_refused_by_its_header(kind, data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(data).status == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; it would take gigabytes


def scans(count: int) -> bytes:
    """A progressive JPEG with its last scan repeated, which decoders accept."""
    data = encode(scene(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + b"\xff\xd9"


def test_a_jpeg_of_endless_scans_is_refused():
    assert prepare(scans(80), "image", TRANSFORM, LIMITS).shape == (3, R, R)
    error = refusal(scans(100))
    assert error.status == 422 and "scans" in error.message
    # A restart marker or an unknown one among the pixels hides nothing.
    assert "scans" in refusal(scans(100).replace(b"\xff\xda", b"\xff\x05\xff\xff\xff\xff\xda")).message


def test_scans_of_a_preview_and_behind_the_end_do_not_count():
    data = encode(scene(), "JPEG", progressive=True)
    preview = b"\xff\xe2" + struct.pack(">H", 602) + b"\xff\xda\x00" * 200
    expected = prepare(data, "image", TRANSFORM, LIMITS)
    for more in (data + b"\x00\x02" + b"\xff\xda\x00\x02" * 200 + b"\xff\xd9", data[:2] + preview + data[2:]):
        np.testing.assert_array_equal(prepare(more, "image", TRANSFORM, LIMITS), expected)


@pytest.mark.parametrize(
    "error", [OSError("/etc/x"), SyntaxError(), struct.error(), zlib.error(), OverflowError(), MemoryError(),
              Image.DecompressionBombError(), RecursionError(), KeyError(), ZeroDivisionError(), AssertionError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_decoder_raises_is_a_refusal(error, monkeypatch):
    class Breaks(ImageTransform):
        def evaluate(self, data):
            raise error

    grey = encode(scene().convert("L"), "PNG")
    with pytest.raises(RequestError) as raised:
        prepare(grey, "image", Breaks(R), LIMITS)
    assert raised.value.status == 422 and "/etc" not in str(raised.value)
    # And below the transform, where Pillow's own errors come from.
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: (_ for _ in ()).throw(error))
    assert refusal(grey).status in (413, 422)


def mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        kind, place = rng.randrange(6), rng.randrange(len(changed) + 1)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[max(place, 1) :]
        elif kind == 2:
            changed[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            del changed[place : place + rng.randrange(1, 9)]
        elif kind == 4:  # the header, where sizes and colour modes lie
            changed[min(place % 64, len(changed) - 1)] = rng.choice((0, 1, 2, 127, 128, 255))
        else:
            changed[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xda\xff\xc4", b"IDAT"))
        if not changed:
            return b"\0"
    return bytes(changed)


def repair(data: bytes) -> bytes:
    """Right checksums in a PNG, or its decoder would look at no damage."""
    out, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        out += data[place:end] + struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(out) + data[place:]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_ten_thousand_damaged_pictures():
    rng = random.Random(20)
    turned = Image.Exif()
    turned[0x0112] = 6
    small = scene(20, 14)
    sources = [
        encode(small, "JPEG", exif=turned),
        encode(small, "JPEG", progressive=True),
        encode(small.convert("CMYK"), "JPEG"),
        encode(small.convert("RGBA"), "PNG", exif=turned),
        encode(small.quantize(16), "PNG", transparency=3),
        encode(Image.new("I;16", (20, 14), 4000), "PNG"),
        encode(small, "WEBP"),
        encode(small.convert("RGBA"), "WEBP", lossless=True, exif=turned),
        encode(small, "WEBP", save_all=True, append_images=[small.rotate(90)]),
        encode(small.quantize(16), "GIF", save_all=True, append_images=[small.rotate(90).quantize(16)]),
        encode(small, "BMP"),
    ]
    limits = Limits(image_pixels=1_000_000)
    for source in sources:
        prepare(source, "image", TRANSFORM, limits)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = dict.fromkeys((200, 413, 415, 422), 0)
    for n in range(10_000):
        data = mutate(sources[n % len(sources)], rng)
        if n % 2 and data.startswith(b"\x89PNG"):
            data = repair(data)
        try:
            got = prepare(data, "image", TRANSFORM, limits)
            assert (got.dtype, got.shape) == (np.uint8, (3, R, R))
            outcomes[200] += 1
        except RequestError as error:
            assert error.field == "image"
            outcomes[error.status] += 1
    assert min(outcomes.values()) > 50, outcomes
    assert outcomes[200] > 1000 and outcomes[422] > 1000, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("length", range(1, 8))
def test_base64_of_every_alphabet(length):
    data = bytes([0xFB, 0xEF, 0xFF, 0x00, 0x10, 0xFE, 0xC3])[:length]
    for encoded in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
        for text in (encoded, encoded.rstrip("=")):
            for prefix in ("", "data:image/png;base64,", "DATA:image/svg+xml;BASE64,"):
                assert decode_base64(prefix + text, "image", LIMITS) == data


@pytest.mark.parametrize(
    "text",
    [
        "", "=", "====", "data:image/png;base64,", "A", "AAAAA", "AA=A", "AA=", "AA===", "AAA==", "=AAA", "AAAA=",
        "AAAA====", "AAAA\n", "AA AA", " AAAA", "AAA*", "AAAé", "AAA\ud800", "AAA\0", "data:text/plain;base64,AAAA",
        "data:image/png,AAAA", "data:image/png;base64;AAAA", "https://host/cat.png", "xdata:image/png;base64,AAAA",
    ],
)  # fmt: skip
def test_what_is_not_base64(text):
    with pytest.raises(RequestError, match="base64") as raised:
        decode_base64(text, "images[0]", LIMITS)
    assert (raised.value.status, raised.value.field) == (422, "images[0]")


@pytest.mark.parametrize("size", range(9, 13))
def test_base64_of_too_many_bytes(size, monkeypatch):
    limits, data = Limits(image_bytes=size), bytes(range(size + 1))
    assert decode_base64(base64.b64encode(data[:-1]).decode(), "image", limits) == data[:-1]
    with pytest.raises(RequestError) as raised:
        decode_base64(base64.b64encode(data).decode(), "image", limits)
    assert raised.value.status == 413
    # Far too long: not even looked at.
    monkeypatch.setattr(pictures, "binascii", None)
    with pytest.raises(RequestError) as raised:
        decode_base64("A" * 100, "image", limits)
    assert raised.value.status == 413
