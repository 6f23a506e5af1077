"""The inner loops of curation: one pass that looks, one decision, one pass that writes.

Between the passes 2 bytes per record are remembered, and 24 lie in a scratch file. Near
duplicates, where they are asked for, cost about 1 KiB per record more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selectit_dagster.artefacts.duckdb_tables import (
    ParquetStream,
    Workspace,
    release_unused,
    stored_batches,
)
from selectit_dagster.artefacts.files import atomic_file
from selectit_dagster.data.decontamination import Decontaminator, read_questions
from selectit_dagster.data.drop_reasons import DUPLICATE, NEAR, REASONS, STEPS, Decisions
from selectit_dagster.data.duplicates import (
    digest_batch,
    duplicate_digest,
    exact_duplicates,
    near_duplicates,
)
from selectit_dagster.data.flags import FLAGS, INJECTION, MENTION, flag_batch, injection, mention
from selectit_dagster.data.ingest import RECORDS
from selectit_dagster.data.ingest_pass import (
    BATCH_ROWS,
    EXAMPLES,
    PARQUET_OPTIONS,
    RECORD_FIELDS,
    preview_rows,
)
from selectit_dagster.data.text import normal_record
from selectit_dagster.display import one_line
from selectit_dagster.progress import Progress

if TYPE_CHECKING:
    from selectit_dagster.data.curation import CurationRequest

CURATED_SCHEMA = pa.schema([*RECORD_FIELDS, pa.field("flags", pa.list_(pa.string()))])
TEXTS = ("instruction", "input", "response")


class Curator:
    """Decides about every record of one raw dataset, then writes what is left."""

    def __init__(
        self, request: CurationRequest, total: int, work: Workspace, progress: Progress
    ) -> None:
        self.section = request.curation
        index = None
        if request.curation.decontamination and request.questions is not None:
            questions = read_questions(request.questions)
            index = Decontaminator(questions, request.curation.decontamination_ngram)
        self.decided = Decisions(request.curation, total, index)
        self.path = request.raw / RECORDS
        self.total = total
        self.work = work
        self.progress = progress
        self.preview: list[dict[str, Any]] = []
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self.done = 0

    def _batches(self, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the records' columns in batches, with the row at which each starts."""
        start = 0
        for batch in stored_batches(self.path, columns, BATCH_ROWS):
            yield start, batch
            start += batch.num_rows

    def _report(self, done: int, share: float, before: float = 0.0) -> None:
        """Report the part of the whole work that is done."""
        self.progress.update(int(done * share + self.total * before), self.total)

    def decide(self) -> None:
        """Look at every record and run the steps."""
        digests = self.work.folder / "digests.parquet"
        with ParquetStream(digests, compression="none") as sink:
            for start, batch in self._batches(list(TEXTS)):
                self._look(start, batch, sink)
                self._report(start + batch.num_rows, share=0.6)
        if self.section.exact_duplicates and sink.rows:
            found = exact_duplicates(self.work, digests, self.path)
            self.decided.drop_repeats(DUPLICATE, found)
        self.decided.drop_contaminated()
        if self.section.near_duplicates.enabled:
            self._drop_near()

    def _look(self, start: int, batch: pa.RecordBatch, digests: ParquetStream) -> None:
        """Find flags and contamination, and take the digests of the normal forms that stay."""
        decided = self.decided
        columns = [batch.column(name).to_pylist() for name in TEXTS]
        normal = list(map(normal_record, *columns))
        part = slice(start, start + batch.num_rows)
        decided.flag(part, flag_batch(normal, columns[2]))
        alive = decided.left(part)
        if self.section.exact_duplicates and len(alive):
            by = self.section.duplicates_by
            taken = [duplicate_digest(normal[i], columns[2][i], by) for i in alive.tolist()]
            digests.write(digest_batch(alive + start, taken))
        if decided.index is not None:
            for row, texts in enumerate(normal, start):
                if (hit := decided.index.hit(*texts.split("\n"))) is not None:
                    decided.hits[row] = hit

    def _drop_near(self) -> None:
        """Drop near duplicates among what is left."""
        options = self.section.near_duplicates
        rows = self.decided.left()

        def chosen(columns: list[str]) -> Iterator[pa.RecordBatch]:
            for start, batch in self._batches(columns):
                low, high = np.searchsorted(rows, [start, start + batch.num_rows])
                yield batch.take(pa.array(rows[low:high] - start))

        def texts() -> Iterator[str]:
            for batch in chosen(list(TEXTS)):
                columns = [batch.column(name).to_pylist() for name in TEXTS]
                yield from map("\n".join, zip(*columns, strict=True))

        found = near_duplicates(
            texts,
            [name for batch in chosen(["record_id"]) for name in batch.column(0).to_pylist()],
            threshold=options.threshold,
            ngram=options.ngram,
            permutations=options.permutations,
            on_progress=lambda done: self._report(done, share=0.2, before=0.6),
        )
        self.decided.drop_repeats(NEAR, replace(found, rows=rows[found.rows]))

    def write(self, records: Path, dropped: Path) -> None:
        """Write the records that are left, and every other one with its reason."""
        with (
            atomic_file(records) as kept_file,
            atomic_file(dropped) as dropped_file,
            pq.ParquetWriter(kept_file, CURATED_SCHEMA, **PARQUET_OPTIONS) as writer,
        ):
            for start, batch in self._batches([entry.name for entry in RECORD_FIELDS]):
                self.done = start + batch.num_rows
                self._write_dropped(batch, start, dropped_file)
                writer.write_batch(self._kept(batch, slice(start, self.done)))
                release_unused()
                self._report(self.done, share=0.2, before=0.8)
        self.progress.update(self.total, self.total)

    def _kept(self, batch: pa.RecordBatch, part: slice) -> pa.RecordBatch:
        """Return the records of a batch that are left, with their flags."""
        alive = self.decided.left(part)
        bits = self.decided.bits[part][alive]
        kept = batch if len(alive) == batch.num_rows else batch.take(pa.array(alive))
        kept = pa.record_batch([*kept.columns, _flag_lists(bits)], schema=CURATED_SCHEMA)
        self.preview += preview_rows(kept, EXAMPLES - len(self.preview))
        for index, name in enumerate(FLAGS):
            for row in np.flatnonzero(bits >> index & 1)[:EXAMPLES].tolist():
                self._keep_example(name, kept, row, REASONS[name] + _matched(name, kept, row))
        return kept

    def _write_dropped(self, batch: pa.RecordBatch, start: int, handle: IO[bytes]) -> None:
        codes = self.decided.codes[start : start + batch.num_rows]
        for index in np.flatnonzero(codes).tolist():
            step = STEPS[codes[index]]
            reason = self.decided.reason(start + index) + _matched(step, batch, index)
            name = batch.column("record_id")[index].as_py()
            entry = {"record_id": name, "step": step, "reason": reason}
            handle.write(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")
            self._keep_example(step, batch, index, reason)

    def _keep_example(self, name: str, batch: pa.RecordBatch, index: int, reason: str) -> None:
        """Keep the first few records of each step and flag, to be shown."""
        examples = self.examples.setdefault(name, [])
        if len(examples) < EXAMPLES:
            row = preview_rows(batch.slice(index, 1), 1)[0]
            examples.append({**row, "reason": one_line(reason)})

    def counts(self) -> dict[str, int]:
        """Return the counts of the steps and of the flags."""
        return {"raw": self.done, **self.decided.counts()}

    def details(self) -> dict[str, Any]:
        """Return what the asset's page shows: steps, examples, contamination, first records."""
        return {
            "steps": self.decided.table(),
            "examples": self.examples,
            "decontamination": self.decided.contamination(),
            "preview": self.preview,
        }


def _matched(flag: str, batch: pa.RecordBatch, index: int) -> str:
    """Return the words of a record that a flag about the rater rests on."""
    if flag not in {INJECTION, MENTION}:
        return ""
    normal = normal_record(*(batch.column(name)[index].as_py() for name in TEXTS))
    words = (injection if flag == INJECTION else mention)(*normal.split("\n"))
    return f": “{one_line(words, 120)}”"


def _flag_lists(bits: np.ndarray) -> pa.Array:
    """Return the flags of each record as a list of names."""
    marks = (bits[:, None] >> np.arange(len(FLAGS)) & 1).astype(bool)
    sizes = np.concatenate(([0], np.cumsum(marks.sum(axis=1)))).astype(np.int32)
    names = [FLAGS[index] for index in np.nonzero(marks)[1].tolist()]
    return pa.ListArray.from_arrays(pa.array(sizes), pa.array(names, pa.string()))
