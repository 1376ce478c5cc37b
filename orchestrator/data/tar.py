"""The files of a tar stream: what a shard needs of the format, at a fifth of what `tarfile` takes for a member.

Read are POSIX's ustar and pax headers and GNU's long names and sizes, whole or compressed with gzip, bzip2 or xz. A
damaged header is an error wherever it stands; `tarfile` ends there as if the archive did, and what follows is lost
without a word.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

_BLOCK = 512
_CHUNK_BYTES = 1 << 18
# A tar's text is in UTF-8 or in whatever the writer had; the second keeps its bytes.
_TEXT = ("utf-8", "surrogateescape")

_FILES = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_PAX, _PAX_OF_ALL, _GNU_NAME, _GNU_SPARSE = b"x", b"g", b"L", b"S"

_COMPRESSIONS: tuple[tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", lzma.LZMADecompressor),
    (b"\x5d\0\0\x80", lzma.LZMADecompressor),  # xz's predecessor
)


class DamagedTar(ValueError):
    """A tar that ends early, is damaged, or is none; the message says at which byte."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def files(stream: Readable) -> Iterator[tuple[str, bytes]]:
    """The archive's regular files, in order: name and content. Folders, links and devices are left out.

    Parameters
    ----------
    stream : gives the archive's bytes; it is read to the archive's end mark at least

    Raises
    ------
    DamagedTar : after the last whole file

    Source: POSIX.1-2017, `pax`, "ustar interchange format" and "pax header block"; GNU tar's manual, "Basic tar
    format".
    """
    source = _Source(stream)
    of_all: dict[str, str] = {}
    of_next: dict[str, str] = {}
    while header := source.header():
        name, size, kind = _fields(header, source.at)
        if kind in (_PAX, _PAX_OF_ALL):
            (of_next if kind == _PAX else of_all).update(_pax_records(source.content(size), source.at))
            continue
        if kind == _GNU_NAME:
            of_next["path"] = _text(source.content(size))
            continue
        if of_all or of_next:
            changed = {**of_all, **of_next}
            name, size = changed.get("path", name), int(changed.get("size", size))
            if any(key.startswith("GNU.sparse.") for key in changed):
                kind = _GNU_SPARSE
            of_next = {}
        if kind == _GNU_SPARSE:
            raise DamagedTar(f"{name!r} at byte {source.at} is stored as a sparse file, which is not read")
        if kind in _FILES and not name.endswith("/"):
            yield name, source.content(size)
        elif kind not in _WITHOUT_DATA:
            source.content(size)
    if of_next:
        raise DamagedTar(f"it ends before the header of {of_next.get('path', 'a file')!r}, at byte {source.at}")


class _Source:
    """The archive's bytes, decompressed, with what was read and not yet asked for."""

    def __init__(self, stream: Readable):
        self._chunks = _decompressed(stream)
        self._chunk, self._place = b"", 0
        self.at = 0

    def header(self) -> bytes | None:
        """The next header; None at the archive's end: a block of zeros, or the end of the bytes after whole blocks."""
        block = self._read(_BLOCK)
        if block.count(0) == _BLOCK or (not block and self.at and self.at % _BLOCK == 0):
            return None
        if len(block) < _BLOCK:
            raise DamagedTar(
                f"it ends between files or within a header, at byte {self.at}" if self.at else "it is empty"
            )
        return block

    def content(self, size: int) -> bytes:
        """A member's bytes; its padding is passed over."""
        data = self._read(size)
        if len(data) < size:
            raise DamagedTar(f"it ends at byte {self.at}, {size - len(data)} bytes before the end of a file")
        self._read(-size % _BLOCK)
        return data

    def _read(self, size: int) -> bytes:
        """As many bytes, or fewer at the end."""
        data = self._chunk[self._place : self._place + size]
        self._place += len(data)
        if len(data) < size:
            parts, missing = [data], size - len(data)
            while missing and (chunk := next(self._chunks, b"")):
                parts.append(chunk[:missing])
                self._chunk, self._place = chunk, len(parts[-1])
                missing -= len(parts[-1])
            data = b"".join(parts)
        self.at += len(data)
        return data


def _decompressed(stream: Readable) -> Iterator[bytes]:
    """The stream's bytes in chunks, decompressed where their first ones say so."""
    chunk = stream.read(_CHUNK_BYTES)
    new = next((new for magic, new in _COMPRESSIONS if chunk.startswith(magic)), None)
    if new is None:
        while chunk:
            yield chunk
            chunk = stream.read(_CHUNK_BYTES)
        return
    decompressor = new()
    while chunk:
        try:
            data = decompressor.decompress(chunk)
        except (zlib.error, lzma.LZMAError, OSError) as error:
            raise DamagedTar(f"it cannot be decompressed: {error}") from None
        if data:
            yield data
        chunk = decompressor.unused_data if decompressor.eof else b""
        if decompressor.eof and chunk:
            decompressor = new()  # Several compressed parts, one after the other, are one whole.
        chunk = chunk or stream.read(_CHUNK_BYTES)
    if not decompressor.eof:
        raise DamagedTar("its compressed bytes end early")


def _fields(header: bytes, at: int) -> tuple[str, int, bytes]:
    """Name, bytes of content and kind of a member."""
    try:
        rest, checksum = header[:148] + header[156:], _number(header[148:156]) - 8 * ord(" ")
        # Some old writers added up signed bytes.
        if checksum != sum(rest) and checksum != sum(memoryview(rest).cast("b")):
            raise ValueError
        size = _number(header[124:136])
    except ValueError:
        raise DamagedTar(f"the header before byte {at} is damaged") from None
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    return name, size, header[156:157]


def _number(field: bytes) -> int:
    """Octal digits, or GNU's binary where those do not suffice."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    value = int(field.partition(b"\0")[0].strip() or b"0", 8)
    if value < 0:
        raise ValueError
    return value


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(*_TEXT)


def _pax_records(data: bytes, at: int) -> dict[str, str]:
    """A pax header's records, "length key=value\\n" each."""
    records = {}
    place = 0
    try:
        while place < len(data) and data[place]:
            digits = data[place : data.index(b" ", place)]
            key, _, value = data[place + len(digits) + 1 : place + int(digits) - 1].partition(b"=")
            records[key.decode(*_TEXT)] = value.decode(*_TEXT)
            if int(digits) <= len(digits):
                raise ValueError
            place += int(digits)
        if "size" in records and int(records["size"]) < 0:
            raise ValueError
    except ValueError:
        raise DamagedTar(f"the pax header before byte {at} is damaged") from None
    return records
