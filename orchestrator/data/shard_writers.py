"""Samples -> shards. Both writers give a shard its name only when it is whole."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Mapping
from types import TracebackType

from orchestrator import storage


class ShardWriter:
    """Writes a WebDataset tar. The same samples give the same bytes.

    Parameters
    ----------
    uri : the shard, on a disk or in object storage
    """

    def __init__(self, uri: str):
        self._stack = contextlib.ExitStack()
        stream = self._stack.enter_context(storage.open_output(uri))
        self._archive = self._stack.enter_context(tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT))  # noqa: SIM115

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a sample: its members by ending (jpg, txt, json, cls ...)."""
        if "." in key.rpartition("/")[2]:
            raise ValueError(f"key {key!r} has a dot; a reader would end the key there")
        for ending, data in members.items():
            header = tarfile.TarInfo(f"{key}.{ending}")
            header.size = len(data)
            self._archive.addfile(header, io.BytesIO(data))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


class ParquetShardWriter:
    """Writes a Parquet shard of image bytes and text.

    Parameters
    ----------
    uri : the shard
    image_column, text_column : names
    rows_a_group : samples buffered and written together
    """

    def __init__(self, uri: str, image_column: str = "image", text_column: str = "text", rows_a_group: int = 256):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([(image_column, pa.binary()), (text_column, pa.string())])
        self._rows: list[tuple[bytes, str]] = []
        self._rows_a_group = rows_a_group
        self._stack = contextlib.ExitStack()
        stream = self._stack.enter_context(storage.open_output(uri))
        self._writer = self._stack.enter_context(pq.ParquetWriter(stream, self._schema, compression="none"))

    def write(self, image: bytes, text: str) -> None:
        """Add a sample."""
        self._rows.append((image, text))
        if len(self._rows) == self._rows_a_group:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = [
                pa.array(column, type=field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
            self._rows = []

    def __enter__(self) -> ParquetShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._stack.__exit__(kind, error, traceback)
