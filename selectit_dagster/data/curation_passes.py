"""The inner loops of curation: one pass that looks, one decision, one pass that writes.

Between the passes 2 bytes per record are remembered, and 24 lie in a scratch file. Near
duplicates, where they are asked for, cost about 1 KiB per record more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from selectit_dagster.artefacts.duckdb_tables import Workspace, stored_batches
from selectit_dagster.artefacts.files import atomic_file
from selectit_dagster.data.background_parquet_writer import BackgroundWriter
from selectit_dagster.data.decontamination import Decontaminator, read_questions
from selectit_dagster.data.drop_reasons import DUPLICATE, NEAR, REASONS, Decisions
from selectit_dagster.data.duplicates import (
    Digests,
    Duplicates,
    duplicate_digest,
    near_duplicates,
)
from selectit_dagster.data.flags import (
    FLAGS,
    INJECTION,
    MENTION,
    flag_batch,
    injection,
    mention,
)
from selectit_dagster.data.ingest import RECORDS
from selectit_dagster.data.ingest_pass import BATCH_ROWS, PARQUET_OPTIONS, RECORD_FIELDS
from selectit_dagster.data.profile import Profile
from selectit_dagster.data.rejects import EXAMPLES, preview_rows
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
        self.request = request
        self.section = request.curation
        self.decided = Decisions(request.curation, total)
        self.path = request.raw / RECORDS
        self.total = total
        self.work = work
        self.progress = progress
        self.profile = Profile()
        self.preview: list[dict[str, Any]] = []
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self.done = 0

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        return stored_batches(self.path, columns, BATCH_ROWS)

    def decide(self) -> None:
        """Look at every record and run the steps."""
        digests = Digests(self.work)
        with digests:
            self._look(digests)
        if self.section.exact_duplicates:
            self.decided.drop_repeats(DUPLICATE, digests.repeated(self.path))
        self.decided.drop_contaminated()
        if self.section.near_duplicates.enabled:
            self._near()

    def _look(self, digests: Digests) -> None:
        """Find flags and contamination, and take the digests of the normal forms that stay."""
        decided, section = self.decided, self.section
        if section.decontamination and self.request.questions is not None:
            questions = read_questions(self.request.questions)
            decided.index = Decontaminator(questions, section.decontamination_ngram)
        start = 0
        for batch in self._batches(list(TEXTS)):
            columns = [batch.column(name).to_pylist() for name in TEXTS]
            normal = list(map(normal_record, *columns))
            part = slice(start, start + batch.num_rows)
            decided.flag(part, flag_batch(normal, columns[2]))
            if section.exact_duplicates:
                alive = decided.left(part)
                rows = ((normal[i], columns[2][i]) for i in alive.tolist())
                by = section.duplicates_by
                digests.add(alive + start, [duplicate_digest(*row, by) for row in rows])
            if decided.index is not None:
                for row, texts in enumerate(normal, start):
                    if (hit := decided.index.hit(*texts.split("\n"))) is not None:
                        decided.hits[row] = hit
            start = part.stop
            self._report(start, share=0.6)

    def _report(self, done: int, share: float, before: float = 0.0) -> None:
        """Report the part of the whole work that is done."""
        self.progress.update(int(done * share + self.total * before), self.total)

    def _ids(self, rows: np.ndarray) -> pa.Array:
        """Return the record ids of ascending ``rows``, reading no other column."""
        parts, start = [], 0
        for batch in self._batches(["record_id"]):
            low, high = np.searchsorted(rows, [start, start + batch.num_rows])
            parts.append(batch.column(0).take(pa.array(rows[low:high] - start)))
            start += batch.num_rows
        return pa.chunked_array(parts, pa.string()).combine_chunks()

    def _near(self) -> None:
        """Find near duplicates among what is left."""
        options = self.section.near_duplicates
        rows = self.decided.left()

        def texts() -> Iterator[str]:
            start = 0
            for batch in self._batches(list(TEXTS)):
                low, high = np.searchsorted(rows, [start, start + batch.num_rows])
                chosen = batch.take(pa.array(rows[low:high] - start))
                columns = [chosen.column(name).to_pylist() for name in TEXTS]
                yield from map("\n".join, zip(*columns, strict=True))
                start += batch.num_rows

        found = near_duplicates(
            texts,
            self._ids(rows).to_pylist(),
            threshold=options.threshold,
            ngram=options.ngram,
            permutations=options.permutations,
            on_progress=lambda done: self._report(done, share=0.2, before=0.6),
        )
        whole = Duplicates(rows[found.rows], rows[found.kept], found.similarity)
        self.decided.drop_repeats(NEAR, whole)

    def write(self, records: Path, dropped: Path) -> None:
        """Write the records that are left, and every other one with its reason."""
        instead = _Instead(self.decided.repeats, self._ids)
        with (
            atomic_file(records) as kept_file,
            atomic_file(dropped) as dropped_file,
            BackgroundWriter(kept_file, CURATED_SCHEMA, **PARQUET_OPTIONS) as writer,
        ):
            for batch in self._batches([entry.name for entry in RECORD_FIELDS]):
                part = slice(self.done, self.done + batch.num_rows)
                self._write_dropped(batch, part, dropped_file, instead)
                self._write_kept(batch, part, writer)
                self.done = part.stop
                self._report(self.done, share=0.2, before=0.8)
        self.progress.update(self.total, self.total)

    def _write_kept(self, batch: pa.RecordBatch, part: slice, writer: BackgroundWriter) -> None:
        alive = self.decided.left(part)
        bits = self.decided.bits[part][alive]
        kept = batch if len(alive) == batch.num_rows else batch.take(pa.array(alive))
        flags = _flag_lists(bits)
        kept = pa.record_batch([*kept.columns, flags], schema=CURATED_SCHEMA)
        writer.write(kept)
        self.profile.add(kept)
        if len(self.preview) < EXAMPLES:
            self.preview.extend(preview_rows(kept, EXAMPLES - len(self.preview)))
        for index, name in enumerate(FLAGS):
            rows = np.flatnonzero(bits >> index & 1)
            for row in rows[: max(0, EXAMPLES - len(self.examples.get(name, [])))].tolist():
                self._keep_example(name, kept, row, REASONS[name] + _matched(name, kept, row))

    def _write_dropped(
        self,
        batch: pa.RecordBatch,
        part: slice,
        handle: IO[bytes],
        instead: _Instead,
    ) -> None:
        for index in self.decided.dropped(part).tolist():
            row = part.start + index
            step = self.decided.step(row)
            kept = instead.of(row) if step in {DUPLICATE, NEAR} else ""
            reason = self.decided.reason(row, kept) + _matched(step, batch, index)
            entry = {
                "record_id": batch.column("record_id")[index].as_py(),
                "step": step,
                "reason": reason,
            }
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

    def details(self, count_tokens: Callable[[str], int] | None = None) -> dict[str, Any]:
        """Return what the asset's page shows: steps, examples, contamination, profile."""
        return {
            "steps": self.decided.table(),
            "examples": self.examples,
            "decontamination": self.decided.contamination(),
            "profile": self.profile.details(count_tokens),
            "preview": self.preview,
        }


class _Instead:
    """The id of the record that was kept instead of each repeated one."""

    def __init__(self, repeats: list[Duplicates], ids_of: Callable[[np.ndarray], pa.Array]) -> None:
        none = np.zeros(0, np.int64)
        rows = np.concatenate([none, *(found.rows for found in repeats)])
        kept = np.concatenate([none, *(found.kept for found in repeats)])
        order = np.argsort(rows)
        self._rows = rows[order]
        keepers, self._places = np.unique(kept[order], return_inverse=True)
        self._ids = ids_of(keepers)

    def of(self, row: int) -> str:
        """Return the id that stands for a row that was dropped as a repeat."""
        place = int(self._places[np.searchsorted(self._rows, row)])
        return str(self._ids[place].as_py())


def _matched(flag: str, batch: pa.RecordBatch, index: int) -> str:
    """Return the words of a record that a flag about the rater rests on."""
    if flag not in {INJECTION, MENTION}:
        return ""
    normal = normal_record(*(batch.column(name)[index].as_py() for name in TEXTS))
    words = (injection if flag == INJECTION else mention)(*normal.split("\n"))
    return f": “{one_line(words, 120)}”"


def _flag_lists(bits: np.ndarray) -> pa.Array:
    """Return the flags of each record as a list of names."""
    sizes = np.zeros(len(bits) + 1, np.int32)
    marks = (bits[:, None] >> np.arange(len(FLAGS)) & 1).astype(bool)
    sizes[1:] = np.cumsum(marks.sum(axis=1))
    names = np.array(FLAGS)[np.nonzero(marks)[1]] if len(bits) else np.array([], str)
    return pa.ListArray.from_arrays(pa.array(sizes), pa.array(names.tolist(), pa.string()))
