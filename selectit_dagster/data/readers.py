"""Opening a dataset: its rows, whatever the format, file after file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.fields import MAX_RECORD_BYTES, Row
from selectit_dagster.data.file_formats import head_of
from selectit_dagster.data.input_files import FILES, InputFile, Source
from selectit_dagster.data.json_array import read_array
from selectit_dagster.data.json_records import read_lines, read_objects
from selectit_dagster.experiment import DatasetSection


@dataclass
class Opened:
    """A dataset that is being read.

    Attributes
    ----------
    rows:
        The records, once.
    details:
        What a writer needs besides: ``schema`` of a table, ``csv`` of a CSV, once it was read.
    source, before, size:
        The bytes being read; of several files, the size of those before and of all.
    """

    rows: Iterator[Row]
    details: dict[str, Any] = field(default_factory=dict)
    source: ByteSource | None = None
    before: int = 0
    size: int = 0

    def share_read(self) -> float | None:
        """Return the share of the bytes that was read so far, where that is known."""
        size = self.size or (self.source.size if self.source else 0)
        within = self.source.consumed if self.source else 0
        return min(1.0, (self.before + within) / size) if size else None


def open_source(
    section: DatasetSection,
    source: Source,
    revision: str | None = None,
    max_bytes: int = MAX_RECORD_BYTES,
) -> Opened:
    """Open a dataset; ``revision`` is the commit of a hub dataset."""
    if source.format in {"datasets", "hub"}:
        from selectit_dagster.data.arrow_reader import open_typed

        typed = open_typed(section, source.format, revision)
        return Opened(iter(typed), {"schema": _columns_of(typed.schema)})
    if source.format != FILES:
        return _open_file(source.files[0], section, max_bytes)
    whole = Opened(iter(()), size=sum(file.path.stat().st_size for file in source.files))
    whole.rows = _one_after_the_other(whole, source.files, section, max_bytes)
    return whole


def _one_after_the_other(
    whole: Opened, files: tuple[InputFile, ...], section: DatasetSection, max_bytes: int
) -> Iterator[Row]:
    """Yield the rows of several files; those of a CSV as JSON, so that all have one form."""
    from selectit_dagster.data.arrow_reader import canonical_json

    for file in files:
        part = _open_file(file, section, max_bytes)
        whole.source = part.source
        for raw, value, line, _ in part.rows:
            written = (
                canonical_json(value) if "csv" in part.details and type(value) is dict else raw
            )
            yield Row(written, value, line, file.name)
        whole.source, whole.before = None, whole.before + file.path.stat().st_size


def _open_file(file: InputFile, section: DatasetSection, max_bytes: int) -> Opened:
    if file.format == "parquet":
        from selectit_dagster.data.arrow_reader import open_parquet

        typed = open_parquet(file.path)
        return Opened(iter(typed), {"schema": _columns_of(typed.schema)})
    source = ByteSource(file.path, file.compression)
    if file.format == "csv":
        from selectit_dagster.data.csv_reader import CsvReader

        csv = CsvReader(source, section.columns, max_bytes)
        return Opened(iter(csv), {"csv": csv.details}, source)
    if file.format == "jsonl":
        return Opened(read_lines(source, max_bytes), source=source)
    if head_of(file.path)[1].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return Opened(read_objects(source, section.split, max_bytes), source=source)
    return Opened(read_array(source, max_bytes), source=source)


def _columns_of(schema: Any) -> list[dict[str, str]]:  # noqa: ANN401 - Arrow's schema, lazily
    return [{"name": field.name, "type": str(field.type)} for field in schema]
