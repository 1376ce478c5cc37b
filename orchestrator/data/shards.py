"""Shards -> samples, still encoded. WebDataset tar and Parquet, read as a stream.

A sample is a run of tar members that share a key: the name up to the first dot of its last part.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator import storage
from orchestrator.config import DataConfig
from orchestrator.data import tar

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")

MISSING_IMAGE = "missing_image"
MISSING_CAPTION = "missing_caption"
EMPTY_TEXT = "empty_text"
BAD_UTF8 = "bad_utf8"
BAD_JSON = "bad_json"
BAD_LABEL = "bad_label"
DUPLICATE_MEMBER = "duplicate_member"
REPEATED_KEY = "repeated_key"
TRUNCATED_SHARD = "truncated_shard"

# Keys remembered of one shard, to find one that comes back after others: shards hold thousands of samples.
_KEYS_REMEMBERED = 1_000_000


@dataclass(frozen=True)
class RawSample:
    """A sample as it is stored.

    Parameters
    ----------
    index : place in the shard; good and bad samples count alike
    key : its name
    image : encoded
    texts : captions, at least one where captions were asked for
    label : of an evaluation set: a class, or an array of several
    """

    index: int
    key: str
    image: bytes
    texts: list[str] = field(default_factory=list)
    label: int | np.ndarray | None = None


@dataclass(frozen=True)
class Reject:
    """A sample that cannot be used, and why."""

    shard: str
    index: int
    key: str
    reason: str
    detail: str = ""


class _BadSample(Exception):
    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail


def is_parquet(uri: str, config: DataConfig) -> bool:
    """Whether a shard is Parquet rather than tar."""
    if config.format == "auto":
        return uri.lower().endswith((".parquet", ".pq"))
    return config.format == "parquet"


def read_shard(
    uri: str, config: DataConfig, captions: bool = True, patience_s: float = 0.0
) -> Iterator[RawSample | Reject]:
    """The samples of a shard, in order.

    Parameters
    ----------
    uri : the shard
    config : format, and where image and text are
    captions : whether a sample needs a caption (an evaluation set's need not)
    patience_s : seconds for which storage that cannot be reached is tried again, from the sample where it was lost

    Yields
    ------
    RawSample, or Reject for one that cannot be used. A truncated shard gives all whole samples, then one Reject

    Raises
    ------
    StorageError : the shard cannot be read
    """
    given = 0
    stream: Iterator[RawSample | Reject] | None = None

    def next_sample() -> RawSample | Reject | None:
        nonlocal stream
        if stream is None:
            stream = itertools.islice(_read_shard(uri, config, captions), given, None)
        try:
            return next(stream, None)
        except storage.StorageError:
            stream = None
            raise

    while (sample := storage.patiently(next_sample, patience_s)) is not None:
        given += 1
        yield sample


def _read_shard(uri: str, config: DataConfig, captions: bool) -> Iterator[RawSample | Reject]:
    if is_parquet(uri, config):
        yield from _read_parquet(uri, config, captions)
        return
    with storage.open_input(uri) as stream:
        for index, (key, members) in enumerate(_groups(stream, uri)):
            if isinstance(members, _BadSample):
                yield Reject(uri, index, key, members.reason, members.detail)
                continue
            try:
                yield _sample_of(index, key, members, config, captions)
            except _BadSample as bad:
                yield Reject(uri, index, key, bad.reason, bad.detail)


def count_samples(uri: str, stream: Any) -> int:
    """How many samples, good and bad, a tar shard holds."""
    return sum(1 for _ in _groups(stream, uri))


def _groups(stream: Any, uri: str) -> Iterator[tuple[str, dict[str, bytes] | _BadSample]]:
    """Runs of members that share a key."""
    key: str | None = None
    members: dict[str, bytes] = {}
    bad: _BadSample | None = None
    seen: set[str] = set()
    truncated = ""
    try:
        for path, data in tar.files(stream):
            folder, _, name = path.rpartition("/")
            stem, _, ending = name.partition(".")
            this = f"{folder}/{stem}" if folder else stem
            if this != key:
                if key is not None:
                    yield key, bad or members
                    if len(seen) < _KEYS_REMEMBERED:
                        seen.add(key)
                key, members, bad = this, {}, None
                if key in seen:
                    bad = _BadSample(REPEATED_KEY, "its members do not stand together")
            if ending.lower() in members:
                bad = _BadSample(DUPLICATE_MEMBER, f"two members .{ending}")
            members[ending.lower()] = data
    except tar.DamagedTar as error:
        truncated = str(error)
    if truncated:
        # The sample before the cut is kept where it is whole; a lone member says that the cut went through it.
        if key is not None and len(members) > 1:
            yield key, bad or members
        yield uri, _BadSample(TRUNCATED_SHARD, truncated)
    elif key is not None:
        yield key, bad or members


def _sample_of(index: int, key: str, members: dict[str, bytes], config: DataConfig, captions: bool) -> RawSample:
    image = next((members[ending] for ending in IMAGE_ENDINGS if ending in members), None)
    if image is None:
        raise _BadSample(MISSING_IMAGE, f"members: {', '.join(sorted(members))}")
    return RawSample(
        index,
        key,
        image,
        _texts(members, config.caption) if captions else [],
        _label(members) if not captions else None,
    )


def _texts(members: dict[str, bytes], caption: str) -> list[str]:
    if caption == "txt" or (caption == "auto" and "txt" in members):
        if "txt" not in members:
            raise _BadSample(MISSING_CAPTION, "no .txt member")
        return _checked([_decode(members["txt"])])
    name = "caption" if caption == "auto" else caption
    if "json" not in members:
        raise _BadSample(MISSING_CAPTION, "no .txt and no .json member" if caption == "auto" else "no .json member")
    try:
        fields = json.loads(_decode(members["json"]))
    except json.JSONDecodeError as error:
        raise _BadSample(BAD_JSON, str(error)) from None
    value = fields.get(name) if isinstance(fields, dict) else None
    if value is None:
        raise _BadSample(MISSING_CAPTION, f"no {name!r} in the .json member")
    return _checked(value if isinstance(value, list) else [value])


def _checked(texts: list[Any]) -> list[str]:
    """The captions that say something."""
    if not all(isinstance(text, str) for text in texts):
        raise _BadSample(MISSING_CAPTION, "the caption is not text")
    kept = [text for text in texts if text.strip()]
    if not kept:
        raise _BadSample(EMPTY_TEXT)
    return kept


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _BadSample(BAD_UTF8, str(error)) from None


def _label(members: dict[str, bytes]) -> int | np.ndarray | None:
    try:
        if "cls" in members:
            return int(members["cls"])
        if "npy" in members:
            return np.load(io.BytesIO(members["npy"]), allow_pickle=False)
    except ValueError as error:
        raise _BadSample(BAD_LABEL, str(error)) from None
    return None


def _read_parquet(uri: str, config: DataConfig, captions: bool) -> Iterator[RawSample | Reject]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [config.image_column, *([config.text_column] if captions else [])]
    with storage.translated(uri):
        filesystem, path = storage.open_location(uri)
        try:
            file = pq.ParquetFile(path, filesystem=filesystem, pre_buffer=False)
        except pa.ArrowInvalid as error:
            yield Reject(uri, 0, uri, TRUNCATED_SHARD, str(error))
            return
        with file:
            for name in columns:
                if name not in file.schema_arrow.names:
                    raise storage.StorageError(
                        f"{uri}: no column {name!r} among {', '.join(file.schema_arrow.names)}; "
                        + ("set data.image_column and data.text_column" if captions else "name the pictures' column")
                    )
            index = 0
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for image, *text in zip(*batch.columns, strict=True):
                    key = f"row {index}"
                    try:
                        value, encoded = _row_value(text[0]) if text else None, _row_value(image)
                        # Hugging Face datasets keep a picture as {bytes, path}.
                        encoded = encoded.get("bytes") if isinstance(encoded, dict) else encoded
                        if not encoded:
                            raise _BadSample(MISSING_IMAGE)
                        if captions and value is None:
                            raise _BadSample(MISSING_CAPTION)
                        texts = _checked(value if isinstance(value, list) else [value]) if captions else []
                        yield RawSample(index, key, encoded, texts)
                    except _BadSample as bad:
                        yield Reject(uri, index, key, bad.reason, bad.detail)
                    index += 1


def _row_value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        raise _BadSample(BAD_UTF8, str(error)) from None
