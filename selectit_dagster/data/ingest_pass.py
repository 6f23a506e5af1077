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
from selectit_dagster.data.input_files import Source
from selectit_dagster.data.json_reader import Row
from selectit_dagster.data.layouts import Layout, choose_layout
from selectit_dagster.data.profile import Profile
from selectit_dagster.data.readers import Reader
from selectit_dagster.data.rejects import EXAMPLES, Rejects, preview_rows
from selectit_dagster.display import one_line
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
    excluded: int
    details: dict[str, Any]


class Collector:
    """Checks, stages and names the records of one source."""

    def __init__(
        self,
        section: DatasetSection,
        source: Source,
        reader: Reader,
        work: Workspace,
        rejects: IO[bytes],
        progress: Progress,
    ) -> None:
        self.section = section
        self.source = source
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
        columns = section.columns
        self._id = columns.id if columns is not None and columns.id is not None else "id"
        self.by_file: dict[str, Counter[str]] = {}
        self._head: list[tuple[Row, int, str]] = []
        self._head_line, self._head_file = 0, ""
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
            self._head.append((row, self.reader.rows.line, self.reader.file))
        samples = [value for (_, value), *_ in self._head if isinstance(value, dict)]
        if samples:
            self.layout = choose_layout(self.section, samples, self.section.path)
        # not compressed: it lives for seconds, and compressing it costs more than the disk
        with pa.ipc.new_file(str(self.stage), STAGED) as sink, self.identities:
            head = self._again()
            self._collect(head, sink, lambda: self._head_line, lambda: self._head_file)
            self._collect(rows, sink, lambda: self.reader.rows.line, lambda: self.reader.file)
            self._flush(sink)

    def _again(self) -> Iterator[Row]:
        """Yield the rows that were read ahead, with their lines."""
        for row, line, file in self._head:
            self._head_line, self._head_file = line, file
            yield row

    def _reject(
        self, position: int, line: int, fault: Unusable, raw: bytes, file_of: Callable[[], str]
    ) -> None:
        self.rejects.add(position, line, fault, raw, file_of())
        if file_of():
            self.by_file[file_of()]["rejected"] += 1

    def _collect(
        self,
        rows: Iterator[Row],
        sink: pa.RecordBatchFileWriter,
        line_of: Callable[[], int],
        file_of: Callable[[], str],
    ) -> None:
        limit, reader = self.section.limit, self.reader
        extract = self.layout.extract if self.layout else None
        own, positions, instructions, inputs, responses, turns, raws, _ = self._columns
        for raw, value in rows:
            if limit is not None and self.read >= limit:
                return
            position = self.read
            self.read += 1
            if reader.file:
                tally = self.by_file.setdefault(file_of(), Counter())
                tally["read"] += 1
            if type(value) is not dict:
                self._reject(position, line_of(), _as_fault(value), raw, file_of)
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
                name = own_id(value, self._id)
                if name is not None and not name.isascii():
                    name.encode()
            except Unusable as fault:
                self._reject(position, line_of(), fault, raw, file_of)
                continue
            except UnicodeEncodeError:
                self._reject(position, line_of(), _encoding_fault(value), raw, file_of)
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
        details = {**self._details(fingerprint), "notes": self._notes()}
        return Outcome(self.read, self.kept, self.rejects.total, self.rejects.excluded, details)

    def _named(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a staged batch with record ids instead of own ids."""
        names = self.identities.names(batch.column("own_id"), batch.column("content_hash"))
        named = pa.record_batch([names, *batch.columns[1:]], schema=RECORD_SCHEMA)
        if len(self.preview) < EXAMPLES:
            self.preview.extend(preview_rows(named, EXAMPLES - len(self.preview)))
        return named

    def _details(self, fingerprint: dict[str, Any]) -> dict[str, Any]:
        source = {
            "path": str(self.source.files[0].path)
            if len(self.source.files) == 1
            else self.section.path,
            "format": fingerprint["format"],
            "compression": fingerprint["compression"],
            "suffix": fingerprint["suffix"],
            "split": self.section.split,
            "config": self.section.config,
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
                "byte_order_mark": bool(self.reader.source and self.reader.source.marked),
            }
        if self.by_file:
            source["files"] = [
                {**entry, "read": self.by_file.get(entry["file"], Counter())["read"]}
                | {"rejected": self.by_file.get(entry["file"], Counter())["rejected"]}
                for entry in source["files"]
            ]
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

    def _notes(self) -> list[str]:
        """Return, a line each, what a user could miss: losses, columns and files passed over."""
        notes = [f"{what}: {n:,} records" for what, n in sorted(self.losses.items())]
        unused = [e for e in self._column_table() if not e["used_as"]]
        if unused:
            named = ", ".join(f"{e['column']} ({e['records']:,})" for e in unused[:10])
            more = f" and {len(unused) - 10} more" if len(unused) > 10 else ""
            notes.append(f"columns kept with the records, but not rated: {named}{more}")
        if passed := self.source.passed_over:
            named = ", ".join(f"{name} ({why})" for name, why in passed[:10])
            rest = len(passed) - 10
            notes.append(f"files passed over: {named}" + (f" and {rest} more" if rest > 0 else ""))
        return notes

    @property
    def losses(self) -> Counter[str]:
        """What the layout left out of records, counted."""
        return self.layout.losses if self.layout else Counter()

    def _column_table(self) -> list[dict[str, Any]]:
        """Return each source column: in how many kept records, and what it is used as."""
        fields = self.layout.fields if self.layout else {}
        used = {str(column).split(".")[0]: part for part, column in fields.items()}
        used |= {str(column): part for part, column in fields.items()}
        counts: Counter[str] = Counter()
        for shape, n in self.shapes.items():
            for column in shape:
                counts[column] += n
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:100]
        return [
            {
                "column": one_line(str(column), 80),
                "records": n,
                "used_as": used.get(column) or ("id" if column == self._id else ""),
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
