"""Encoded pictures from strangers -> uint8 pixels, or a refusal that names the field; nothing else comes out.

Shapes: R pixels a side of the square that the image tower takes.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import replace

import numpy as np

import orchestrator.data.resize  # noqa: F401  otherwise loaded by the first picture, whose sender would wait for it
from orchestrator.data.images import ImageError, ImageTransform
from serving.errors import RequestError
from serving.settings import Limits

READ = "JPEG, PNG, WebP, GIF and BMP are read"

# Every scan of a progressive JPEG is a walk over all of its pixels, however few bytes it has: 75 bytes kept a core busy
# for 25 ms at 50 megapixels. Cameras and editors write about ten.
MAX_SCANS = 100

# What is no stuffed zero and no restart marker, which stand among the coded pixels.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,64};base64,", re.IGNORECASE)


def prepare(data: bytes, field: str, transform: ImageTransform, limits: Limits) -> np.ndarray:
    """The pixels that the image tower takes, as evaluation sees them.

    Parameters
    ----------
    data : the encoded picture
    field : of the request that it came in, for the refusal
    transform : the model's; its `evaluate` is applied
    limits : image_bytes and image_pixels; the pixels are known from the header, before anything is decoded

    Returns
    -------
    uint8 (3, R, R)

    Raises
    ------
    RequestError : 413 too many bytes or pixels, 415 no picture of a format that is read, 422 empty, cut short, damaged
    """
    if not data:
        raise RequestError(422, field, "the picture is empty; send the bytes of its file")
    if len(data) > limits.image_bytes:
        raise too_large(field, limits)
    if not _has_read_format(data):
        raise RequestError(415, field, f"this is no picture of a known format; {READ}")
    if data.startswith(b"\xff\xd8") and _has_many_scans(data):
        raise RequestError(422, field, f"the JPEG has more than {MAX_SCANS} scans; save it with fewer")
    bounded = replace(transform, max_pixels=min(transform.max_pixels, limits.image_pixels))
    try:
        return bounded.evaluate(data)
    except ImageError as error:
        raise _refusal(error, field, bounded.max_pixels) from error
    except Exception as error:  # a decoder may break in ways of its own; the request is to blame, not the server
        raise RequestError(422, field, "the picture is damaged: it cannot be decoded") from error


def decode_base64(text: str, field: str, limits: Limits) -> bytes:
    """The bytes of a picture that was sent as text.

    Parameters
    ----------
    text : base64 of the usual or the URL-safe alphabet, padded or not, without line breaks; `data:image/...;base64,`
        may stand before it
    field : of the request that it came in, for the refusal
    limits : image_bytes; a longer text is refused before it is decoded

    Returns
    -------
    at least one byte, at most limits.image_bytes

    Raises
    ------
    RequestError : 413 too long, 422 not base64, or empty
    """
    prefix = _DATA_URI.match(text)
    start = prefix.end() if prefix else 0
    if len(text) - start > 4 * (limits.image_bytes // 3 + 1):
        raise too_large(field, limits)
    try:
        encoded = text[start:].encode("ascii").replace(b"-", b"+").replace(b"_", b"/")
        bare = encoded.rstrip(b"=")
        padding = b"=" * (-len(bare) % 4)
        if encoded not in (bare, bare + padding):
            raise ValueError("wrong padding")
        data = binascii.a2b_base64(bare + padding, strict_mode=True)
    except ValueError:
        cure = "send the picture's bytes in base64 without line breaks, or after data:image/...;base64,"
        raise RequestError(422, field, f"this is not base64; {cure}") from None
    if not data:
        raise RequestError(422, field, "the picture is empty; send the bytes of its file in base64")
    if len(data) > limits.image_bytes:
        raise too_large(field, limits)
    return data


def too_large(field: str, limits: Limits) -> RequestError:
    """The refusal of a picture of too many bytes."""
    return RequestError(413, field, f"the picture has more than {limits.image_bytes} bytes; send a smaller one")


def _has_read_format(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is read; a file cut short within them counts."""
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
    if data[:4] == b"RIFF"[: len(data)]:
        return data[8:12] == b"WEBP"[: len(data[8:12])]
    return any(data[: len(start)] == start[: len(data)] for start in starts)


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than MAX_SCANS scans; those of a preview, or of what follows its end, do not count."""
    scans, place = 0, 2
    while marker := _JPEG_MARKER.search(data, place):
        code, place = marker.group(1)[0], marker.end()
        if code == 0xD9:  # its end
            break
        if code == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                return True
        if code >= 0xC0 and code != 0xD8:  # a length follows; a decoder skips as much
            place += int.from_bytes(data[place : place + 2], "big")
    return False


def _refusal(error: ImageError, field: str, max_pixels: int) -> RequestError:
    # The decoder's own words may hold anything, and help nobody who holds the picture.
    if error.reason == "too_many_pixels":
        return RequestError(413, field, f"the picture has more than {max_pixels} pixels; send a smaller one")
    if error.reason == "truncated_image":
        return RequestError(422, field, "the picture is cut short; send the whole file")
    return RequestError(422, field, "the picture is damaged: it cannot be decoded")
