"""The readers behind one face: rows with their bytes, file after file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from selectit_dagster.data.byte_sources import ByteSource, head_of
from selectit_dagster.data.input_files import FILES, InputFile, Source
from selectit_dagster.data.json_array import ArrayReader
from selectit_dagster.data.json_objects import ObjectReader
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
    file: str = ""  # the file of the row yielded last, where there are several

    def share_read(self) -> float | None:
        """Return the share of the file that was read so far, where that is known."""
        if self.source is None or not self.source.size:
            return None
        return min(1.0, self.source.consumed / self.source.size)


@dataclass
class FileSequence(Reader):
    """Several files, read in order, each by its own reader.

    Rows of CSV and Parquet files come as JSON, so that all records of the dataset have one form.
    """

    files: tuple[InputFile, ...] = ()
    section: DatasetSection = field(kw_only=True)
    max_bytes: int = MAX_RECORD_BYTES
    line: int = 0
    _done: int = 0

    def __iter__(self) -> Iterator[Row]:
        from selectit_dagster.data.arrow_reader import canonical_json

        for index, file in enumerate(self.files):
            self._done = index
            reader = _of_file(file, self.section, self.max_bytes)
            self.file, self.source = file.name, reader.source
            for raw, value in reader.rows:
                self.line = reader.rows.line
                yield (
                    (canonical_json(value), value)
                    if (file.format == "csv" and isinstance(value, dict))
                    else (raw, value)
                )

    def share_read(self) -> float | None:
        """Return the share of the files' bytes that were read so far."""
        sizes = [file.path.stat().st_size for file in self.files]
        within = super().share_read() or 0.0
        done = sum(sizes[: self._done]) + within * sizes[self._done]
        return done / max(1, sum(sizes))


def open_reader(
    section: DatasetSection,
    source: Source,
    revision: str | None = None,
    max_bytes: int = MAX_RECORD_BYTES,
) -> Reader:
    """Open a dataset; ``revision`` is the commit of a hub dataset."""
    if source.format in {"datasets", "hub"}:
        from selectit_dagster.data.arrow_reader import open_typed

        typed = open_typed(section, source.format, revision)
        return Reader(typed, typed=typed)
    if source.format != FILES:
        return _of_file(source.files[0], section, max_bytes)
    sequence = FileSequence(None, files=source.files, section=section, max_bytes=max_bytes)  # type: ignore[arg-type]
    sequence.rows = sequence
    return sequence


def _of_file(file: InputFile, section: DatasetSection, max_bytes: int) -> Reader:
    if file.format == "parquet":
        from selectit_dagster.data.arrow_reader import open_parquet

        typed = open_parquet(file.path)
        return Reader(typed, typed=typed)
    source = ByteSource(file.path, file.compression)
    if file.format == "csv":
        from selectit_dagster.data.csv_reader import CsvReader

        csv = CsvReader(source, section.columns, max_bytes)
        return Reader(csv, source, csv=csv)
    if file.format == "jsonl":
        return Reader(LineReader(source, max_bytes), source)
    if head_of(file.path)[1].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return Reader(ObjectReader(source, section.split, max_bytes), source)
    return Reader(ArrayReader(source, max_bytes), source)


def written_format(source: Source) -> str:
    """Return the format in which records of the source are written back."""
    if source.format != FILES:
        return source.format
    # a record of an array may stand on several lines, which JSON Lines cannot hold
    return "json" if any(file.format == "json" for file in source.files) else "jsonl"


def describe(source: Source) -> dict[str, Any]:
    """Return format and compression of the source for its manifest."""
    return {"format": written_format(source), "compression": source.compression}
