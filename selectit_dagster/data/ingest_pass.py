"""The inner loop of reading: one pass over the source, one over the staged copy.

The first pass checks every record, writes the rejects and stages the rest in an Arrow
file; when all ids are known the second pass writes ``records.parquet``. Batches are
bounded in rows and in bytes, so memory does not grow with the file.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, Workspace, release_unused
from selectit_dagster.artefacts.files import atomic_file
from selectit_dagster.data.byte_sources import DamagedSource
from selectit_dagster.data.fields import WHOLE_RECORD, Excluded, Row, Unusable
from selectit_dagster.data.identity import Names, content_digest, identity_keys, own_id
from selectit_dagster.data.input_files import first_ten
from selectit_dagster.data.layouts import Layout, choose_layout
from selectit_dagster.data.readers import Opened
from selectit_dagster.display import one_line
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import DatasetSection
from selectit_dagster.progress import Progress

BATCH_ROWS = 1 << 14
BATCH_BYTES = 16 << 20  # more would be more than a query may hold of long records
LAYOUT_SAMPLE = 200
MAX_SHAPES = 1000  # distinct lists of columns that are counted
EXAMPLES = 5

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


@dataclass
class Rejects:
    """The rejected records: every one on disk, the reasons counted."""

    handle: IO[bytes]
    total: int = 0
    excluded: int = 0
    reasons: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def add(self, position: int, row: Row, fault: Unusable) -> None:
        """Write one reject."""
        excerpt = one_line(row.raw[:400].decode("utf-8", "backslashreplace"))
        name = one_line(fault.field)
        entry = {"position": position, "field": name, "reason": fault.reason, "excerpt": excerpt}
        entry |= {k: v for k, v in (("line", row.line), ("file", row.file)) if v}
        self.handle.write(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")
        self.total += 1
        self.excluded += isinstance(fault, Excluded)
        # places inside a conversation differ from record to record; the kind of fault does not
        reason = fault.reason.split(" (column")[0]
        key = (name.split("[")[0], reason)
        if key not in self.reasons and len(self.reasons) >= MAX_SHAPES:
            return
        none = {"field": name, "reason": reason, "count": 0, "first_positions": []}
        kind = self.reasons.setdefault(key, none)
        kind["count"] += 1
        if len(kind["first_positions"]) < EXAMPLES:
            kind["first_positions"].append(position)

    def table(self) -> list[dict[str, Any]]:
        """Return the reasons, the most frequent first, with their first positions."""
        ordered = sorted(self.reasons.items(), key=lambda item: (-item[1]["count"], item[0]))
        return [kind for _, kind in ordered[:20]]


def preview_rows(batch: pa.RecordBatch, count: int) -> list[dict[str, Any]]:
    """Return the first records, shortened and with control characters escaped."""
    columns = ["record_id", "instruction", "input", "response"]
    rows = batch.slice(0, count).select(columns).to_pylist()
    return [{name: one_line(row[name]) for name in columns} for row in rows]


class Collector:
    """Checks, stages and names the records of one source."""

    def __init__(
        self,
        section: DatasetSection,
        opened: Opened,
        work: Workspace,
        rejects: IO[bytes],
        progress: Progress,
    ) -> None:
        self.section = section
        self.opened = opened
        self.work = work
        self.rejects = Rejects(rejects)
        self.progress = progress
        self.shapes: Counter[tuple[str, ...]] = Counter()
        self.by_file: dict[str, Counter[str]] = {}
        self.layout: Layout | None = None
        self.read = self.kept = 0
        columns = section.columns
        self._id = columns.id if columns is not None and columns.id is not None else "id"
        self._rows: list[tuple[Any, ...]] = []  # the staged columns but for the hash
        self._digests: list[bytes] = []
        self._bytes = 0

    def run(self) -> None:
        """Read every record; what is usable lies in the staged file afterwards.

        Raises
        ------
        UserError
            When the source cannot be read to its end.
        """
        # not compressed: it lives for seconds, and compressing it costs more than the disk
        with (
            pa.ipc.new_file(str(self.work.folder / "stage.arrow"), STAGED) as stage,
            ParquetStream(self.work.folder / "keys.parquet", compression="none") as keys,
        ):
            head: list[Row] = []
            try:
                rows = self.opened.rows
                head.extend(islice(rows, LAYOUT_SAMPLE))
                samples = [row.value for row in head if isinstance(row.value, dict)]
                if samples:
                    self.layout = choose_layout(self.section, samples, self.section.path)
                for row in islice(chain(head, rows), self.section.limit):
                    self._take(row)
                    if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
                        self._flush(stage, keys)
            except DamagedSource as error:
                whole = max(self.read, len(head))
                raise UserError(
                    f"{error.message}; {whole:,} whole records were read before that",
                    hint=error.hint,
                ) from error
            self._flush(stage, keys)

    def _take(self, row: Row) -> None:
        """Stage one record, or write why it cannot be used."""
        position = self.read
        self.read += 1
        if row.file:
            self.by_file.setdefault(row.file, Counter())["read"] += 1
        value = row.value
        try:
            if not isinstance(value, dict):
                raise value
            self._stage(position, row.raw, value)
        except Unusable as fault:
            self.rejects.add(position, row, fault)
            if row.file:
                self.by_file[row.file]["rejected"] += 1

    def _stage(self, position: int, raw: bytes, value: dict[str, Any]) -> None:
        if self.layout is None:
            # the first records were no objects: look at the first that is
            self.layout = choose_layout(self.section, [value], self.section.path)
        instruction, given, response, turns = self.layout.extract(value)
        try:
            whole = f"{instruction}\x00{given}\x00{response}".encode()
            if whole.count(b"\x00") != 2:
                texts = {"instruction": instruction, "input": given, "response": response}
                part = next(name for name, text in texts.items() if "\x00" in text)
                fields = self.layout.fields
                where = fields.get(part) or fields.get("conversation") or part
                raise Unusable(where, "holds a NUL character")
            name = own_id(value, self._id)
            if name is not None and not name.isascii():
                name.encode()
        except UnicodeEncodeError:
            raise _encoding_fault(value) from None
        if (shape := tuple(value)) in self.shapes or len(self.shapes) < MAX_SHAPES:
            self.shapes[shape] += 1
        self._digests.append(content_digest(whole))
        self._rows.append((name, position, instruction, given, response, turns, raw))
        self._bytes += len(whole) + len(raw)

    def _flush(self, stage: pa.RecordBatchFileWriter, keys: ParquetStream) -> None:
        """Write the held records to the staged file."""
        if self._rows:
            columns = list(map(list, zip(*self._rows, strict=True)))
            keys.write(identity_keys(self.kept, self._digests, columns[0], columns[6]))
            columns.append([digest.hex() for digest in self._digests])
            arrays = [pa.array(c, e.type) for c, e in zip(columns, STAGED, strict=True)]
            stage.write_batch(pa.record_batch(arrays, schema=STAGED))
            self.kept += len(self._rows)
        self._rows, self._digests, self._bytes = [], [], 0
        share = self.opened.share_read()
        total = int(self.read / share) if share else self.read + 1
        self.progress.update(self.read, max(total, self.read + 1), rejected=self.rejects.total)

    def finish(self, target: Path) -> dict[str, Any]:
        """Name the records, write them to ``target`` and return what the manifest shows."""
        names = Names(self.work, self.work.folder / "keys.parquet")
        preview: list[dict[str, Any]] = []
        with atomic_file(target) as handle:
            # not memory-mapped: mapped pages would count as memory of this process
            staged = pa.ipc.open_file(pa.OSFile(str(self.work.folder / "stage.arrow")))
            with pq.ParquetWriter(handle, RECORD_SCHEMA, **PARQUET_OPTIONS) as writer:
                for index in range(staged.num_record_batches):
                    batch = staged.get_batch(index)
                    ids = names.of(batch.column("own_id"), batch.column("content_hash"))
                    named = pa.record_batch([ids, *batch.columns[1:]], schema=RECORD_SCHEMA)
                    preview += preview_rows(named, EXAMPLES - len(preview))
                    writer.write_batch(named)
                    release_unused()
        self.progress.update(self.read, self.read, rejected=self.rejects.total)
        return {
            "layout": self.layout.name if self.layout else None,
            "fields": self.layout.fields if self.layout else {},
            "columns": self._column_table(),
            "ids": {
                "own": names.own,
                "own_but_repeated": names.repeated,
                "made_from_content": self.kept - names.own,
            },
            "rejects": self.rejects.table(),
            "preview": preview,
            "notes": self._notes(),
        }

    def _notes(self) -> list[str]:
        """Return, a line each, what a user could miss of the records."""
        losses = self.layout.losses if self.layout else Counter[str]()
        notes = [f"{what}: {n:,} records" for what, n in sorted(losses.items())]
        unused = [
            f"{e['column']} ({e['records']:,})" for e in self._column_table() if not e["used_as"]
        ]
        if unused:
            notes.append(f"columns kept with the records, but not rated: {first_ten(unused)}")
        return notes

    def _column_table(self) -> list[dict[str, Any]]:
        """Return each source column: in how many kept records, and what it is used as."""
        fields = self.layout.fields if self.layout else {}
        used = {str(column).split(".")[0]: part for part, column in fields.items()}
        used |= {str(column): part for part, column in fields.items()}
        counts: Counter[str] = Counter()
        for shape, n in self.shapes.items():
            counts.update(dict.fromkeys(shape, n))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:100]
        return [
            {
                "column": one_line(str(column), 80),
                "records": n,
                "used_as": used.get(column) or ("id" if column == self._id else ""),
            }
            for column, n in ordered
        ]


def _encoding_fault(value: dict[str, Any]) -> Unusable:
    """Return the first field that holds bytes that are no UTF-8, or a lone surrogate."""
    for name, text in value.items():
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                if "\udc80" <= text[error.start] <= "\udcff":
                    return Unusable(str(name), "is not valid UTF-8")
                return Unusable(str(name), "holds a lone surrogate, which is no character")
    return Unusable(WHOLE_RECORD, "holds a lone surrogate, which is no character")
