"""The readers behind one face: rows with their bytes, and how far the source was read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.json_array import ArrayReader
from selectit_dagster.data.json_reader import MAX_RECORD_BYTES, LineReader, Row
from selectit_dagster.experiment import DatasetSection

if TYPE_CHECKING:
    from selectit_dagster.data.arrow_reader import TypedReader
    from selectit_dagster.data.csv_reader import CsvReader


class Rows(Protocol):
    """Rows one after the other, and the line on which the last one starts (0: no lines)."""

    @property
    def line(self) -> int:
        """Line of the row yielded last, from 1."""
        ...  # pragma: no cover - protocol

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        ...  # pragma: no cover - protocol


@dataclass
class Reader:
    """A source of rows with what is known about it."""

    rows: Rows
    source: ByteSource | None = None
    csv: CsvReader | None = None
    typed: TypedReader | None = None

    def share_read(self) -> float | None:
        """Return the share of the file that was read so far, where that is known."""
        if self.source is None or not self.source.size:
            return None
        return min(1.0, self.source.consumed / self.source.size)


def open_reader(
    section: DatasetSection, fingerprint: dict[str, Any], max_bytes: int = MAX_RECORD_BYTES
) -> Reader:
    """Open the source in the format that the fingerprint names."""
    kind = fingerprint["format"]
    if kind in {"parquet", "datasets", "hub"}:
        from selectit_dagster.data.arrow_reader import open_typed

        typed = open_typed(section, kind, fingerprint["source"].get("revision"))
        return Reader(typed, typed=typed)
    source = ByteSource(Path(section.path), fingerprint["compression"])
    if kind == "csv":
        from selectit_dagster.data.csv_reader import CsvReader

        reader = CsvReader(source, section.columns, max_bytes)
        return Reader(reader, source, csv=reader)
    if kind == "json":
        return Reader(ArrayReader(source, max_bytes), source)
    return Reader(LineReader(source, max_bytes), source)
