"""The inner loop of reading: one pass over the source, one over the staged copy.

The first pass checks every record, writes the rejects and stages the rest in an Arrow
file; when all ids are known the second pass writes ``records.parquet``. Batches are
bounded in rows and in bytes, so memory does not grow with the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.files import atomic_file
from selectit_dagster.data.background_parquet_writer import BackgroundWriter
from selectit_dagster.data.byte_sources import DamagedSource
from selectit_dagster.data.fields import WHOLE_RECORD, Unusable
from selectit_dagster.data.identity import Identities, content_digest, own_id
from selectit_dagster.data.json_reader import Row
from selectit_dagster.data.layouts import Layout, choose_layout
from selectit_dagster.data.profile import Profile
from selectit_dagster.data.readers import Reader
from selectit_dagster.data.rejects import EXAMPLES, Rejects, preview_rows
from selectit_dagster.data.text import shown
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import DatasetSection
from selectit_dagster.progress import Progress

BATCH_ROWS = 1 << 14
BATCH_BYTES = 48 << 20
LAYOUT_SAMPLE = 200
MAX_SHAPES = 1000  # distinct lists of columns that are counted

STAGED = pa.schema(
    [
        ("own_id", pa.string()),
        ("position", pa.int64()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("response", pa.string()),
        ("turns", pa.int16()),
        ("raw", pa.binary()),
        ("content_hash", pa.string()),
    ]
)
RECORD_FIELDS = [pa.field("record_id", pa.string()), *list(STAGED)[1:]]
RECORD_SCHEMA = pa.schema(RECORD_FIELDS)
# long texts hardly repeat: their dictionaries cost time and save nothing
PARQUET_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["turns"],
    "write_statistics": ["record_id", "position"],
}


@dataclass(frozen=True)
class Outcome:
    """What reading gave: the counts and what the manifest shows."""

    read: int
    kept: int
    rejected: int
    details: dict[str, Any]


class Collector:
    """Checks, stages and names the records of one source."""

    def __init__(
        self,
        section: DatasetSection,
        reader: Reader,
        work: Workspace,
        rejects: IO[bytes],
        progress: Progress,
    ) -> None:
        self.section = section
        self.reader = reader
        self.stage = work.folder / "stage.arrow"
        self.rejects = Rejects(rejects)
        self.progress = progress
        self.identities = Identities(work)
        self.profile = Profile()
        self.shapes: Counter[tuple[str, ...]] = Counter()
        self.preview: list[dict[str, Any]] = []
        self.layout: Layout | None = None
        self.read = self.kept = 0
        self._head: list[tuple[Row, int]] = []
        self._head_line = 0
        self._clear()

    def _clear(self) -> None:
        self._columns: tuple[list[Any], ...] = tuple([] for _ in STAGED)
        self._digests: list[bytes] = []
        self._bytes = 0

    def run(self) -> None:
        """Read every record; what is usable lies in the staged file afterwards.

        Raises
        ------
        UserError
            When the source cannot be read to its end.
        """
        try:
            self._read()
        except DamagedSource as error:
            whole = max(self.read, len(self._head))
            raise UserError(
                f"{error.message}; {whole:,} whole records were read before that",
                hint=error.hint,
            ) from error

    def _read(self) -> None:
        rows = iter(self.reader.rows)
        for row in islice(rows, LAYOUT_SAMPLE):
            self._head.append((row, self.reader.rows.line))
        samples = [value for (_, value), _ in self._head if isinstance(value, dict)]
        if samples:
            self.layout = choose_layout(self.section, samples, self.section.path)
        # not compressed: it lives for seconds, and compressing it costs more than the disk
        with pa.ipc.new_file(str(self.stage), STAGED) as sink, self.identities:
            self._collect(self._again(), sink, lambda: self._head_line)
            self._collect(rows, sink, lambda: self.reader.rows.line)
            self._flush(sink)

    def _again(self) -> Iterator[Row]:
        """Yield the rows that were read ahead, with their lines."""
        for row, line in self._head:
            self._head_line = line
            yield row

    def _collect(
        self, rows: Iterator[Row], sink: pa.RecordBatchFileWriter, line_of: Callable[[], int]
    ) -> None:
        limit = self.section.limit
        extract = self.layout.extract if self.layout else None
        own, positions, instructions, inputs, responses, turns, raws, _ = self._columns
        for raw, value in rows:
            if limit is not None and self.read >= limit:
                return
            position = self.read
            self.read += 1
            if type(value) is not dict:
                self.rejects.add(position, line_of(), _as_fault(value), raw)
                continue
            try:
                if extract is None:
                    # the first records were no objects: look at the first that is
                    self.layout = choose_layout(self.section, [value], self.section.path)
                    extract = self.layout.extract
                instruction, given, response, turn = extract(value)
                text = f"{instruction}\x00{given}\x00{response}".encode()
                if text.count(b"\x00") != 2:
                    raise Unusable(_where(self.layout, "\x00", instruction, given), _NUL)
                name = own_id(value)
                if name is not None and not name.isascii():
                    name.encode()
            except Unusable as fault:
                self.rejects.add(position, line_of(), fault, raw)
                continue
            except UnicodeEncodeError:
                self.rejects.add(position, line_of(), _encoding_fault(value), raw)
                continue
            if (shape := tuple(value)) in self.shapes or len(self.shapes) < MAX_SHAPES:
                self.shapes[shape] += 1
            self._digests.append(content_digest(text))
            own.append(name)
            positions.append(position)
            instructions.append(instruction)
            inputs.append(given)
            responses.append(response)
            turns.append(turn)
            raws.append(raw)
            self._bytes += len(text) + len(raw)
            if len(own) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
                self._flush(sink)
                own, positions, instructions, inputs, responses, turns, raws, _ = self._columns

    def _flush(self, sink: pa.RecordBatchFileWriter) -> None:
        """Write the held records to the staged file."""
        if not self._digests:
            return
        own, _, _, _, _, _, raws, hashes = self._columns
        hashes.extend(digest.hex() for digest in self._digests)
        self.identities.add(self._digests, own, raws)
        arrays = [
            pa.array(column, type=entry.type)
            for column, entry in zip(self._columns, STAGED, strict=True)
        ]
        batch = pa.record_batch(arrays, schema=STAGED)
        sink.write_batch(batch)
        self.profile.add(batch)
        self.kept += batch.num_rows
        self._clear()
        share = self.reader.share_read()
        total = int(self.read / share) if share else self.read + 1
        self.progress.update(self.read, max(total, self.read + 1), rejected=self.rejects.total)

    def finish(self, target: Path, fingerprint: dict[str, Any]) -> Outcome:
        """Name the records, write them to ``target`` and return what the manifest shows."""
        self.identities.resolve()
        with atomic_file(target) as handle:
            writer = BackgroundWriter(handle, RECORD_SCHEMA, **PARQUET_OPTIONS)
            # not memory-mapped: mapped pages would count as memory of this process
            with writer, pa.ipc.open_file(pa.OSFile(str(self.stage))) as staged:
                for index in range(staged.num_record_batches):
                    writer.write(self._named(staged.get_batch(index)))
        self.progress.update(self.read, self.read, rejected=self.rejects.total)
        return Outcome(self.read, self.kept, self.rejects.total, self._details(fingerprint))

    def _named(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a staged batch with record ids instead of own ids."""
        names = self.identities.names(batch.column("own_id"), batch.column("content_hash"))
        named = pa.record_batch([names, *batch.columns[1:]], schema=RECORD_SCHEMA)
        if len(self.preview) < EXAMPLES:
            self.preview.extend(preview_rows(named, EXAMPLES - len(self.preview)))
        return named

    def _details(self, fingerprint: dict[str, Any]) -> dict[str, Any]:
        source = {
            "path": self.section.path,
            "format": fingerprint["format"],
            "compression": fingerprint["compression"],
            "suffix": fingerprint["suffix"],
            "split": self.section.split,
            "license": self.section.license,
            **fingerprint["source"],
        }
        if self.reader.typed is not None:
            from selectit_dagster.data.arrow_reader import schema_table

            source["schema"] = schema_table(self.reader.typed.schema)
        if self.reader.csv is not None and self.reader.csv.shape is not None:
            shape = self.reader.csv.shape
            source["csv"] = {
                "header": shape.header,
                "columns": list(shape.columns),
                "delimiter": shape.delimiter,
                "line_ending": shape.line_ending,
            }
        return {
            "source": source,
            "format": fingerprint["format"],
            "suffix": fingerprint["suffix"],
            "sha256": fingerprint["source"].get("sha256"),
            "layout": self.layout.name if self.layout else None,
            "fields": self.layout.fields if self.layout else {},
            "columns": self._column_table(),
            "ids": {
                "own": self.identities.own_unique,
                "own_but_repeated": self.identities.own_repeated,
                "made_from_content": self.kept - self.identities.own_unique,
            },
            "rejects": self.rejects.table(),
            "profile": self.profile.details(),
            "preview": self.preview,
        }

    def _column_table(self) -> list[dict[str, Any]]:
        """Return each source column: in how many kept records, and what it is used as."""
        used = {
            column: part for part, column in (self.layout.fields if self.layout else {}).items()
        }
        counts: Counter[str] = Counter()
        for shape, n in self.shapes.items():
            for column in shape:
                counts[column] += n
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:100]
        return [
            {
                "column": shown(str(column), 80),
                "records": n,
                "used_as": used.get(column) or ("id" if column == "id" else ""),
            }
            for column, n in ordered
        ]


_NUL = "holds a NUL character"


def _as_fault(value: object) -> Unusable:
    return value if isinstance(value, Unusable) else Unusable(WHOLE_RECORD, "is no object")


def _where(layout: Layout | None, mark: str, instruction: str, given: str) -> str:
    """Return the source field that holds ``mark``."""
    part = "instruction" if mark in instruction else "input" if mark in given else "response"
    fields = layout.fields if layout else {}
    return fields.get(part) or fields.get("conversation") or part


def _encoding_fault(value: dict[str, Any]) -> Unusable:
    """Return the first field that holds bytes that are no UTF-8, or a lone surrogate."""
    for name, text in value.items():
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                character = text[error.start]
                reason = (
                    "is not valid UTF-8"
                    if "\udc80" <= character <= "\udcff"
                    else "holds a lone surrogate, which is no character"
                )
                return Unusable(str(name), reason)
    return Unusable(WHOLE_RECORD, "holds a lone surrogate, which is no character")
