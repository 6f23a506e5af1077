"""The steps of curation: one pass that looks, one decision, one pass that writes.

Between the passes 2 bytes per record are remembered, and 24 lie in a scratch file. Near
duplicates, where they are asked for, cost about 1 KiB per record more.
"""

from __future__ import annotations

import json
from collections import Counter
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
from selectit_dagster.data.decontamination import Decontaminator, Hit, read_questions
from selectit_dagster.data.duplicates import (
    Repeats,
    digest_batch,
    duplicate_digest,
    exact_duplicates,
    near_duplicates,
)
from selectit_dagster.data.flags import (
    CONTROL,
    CUT_OFF,
    EMPTY,
    FLAGS,
    INJECTION,
    MENTION,
    REFUSAL,
    flag_batch,
    injection,
    mention,
)
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
from selectit_dagster.experiment import CurationSection
from selectit_dagster.progress import Progress

if TYPE_CHECKING:
    from selectit_dagster.data.curation import CurationRequest

CURATED_SCHEMA = pa.schema([*RECORD_FIELDS, pa.field("flags", pa.list_(pa.string()))])
TEXTS = ("instruction", "input", "response")
KEPT, DUPLICATE, CONTAMINATED, NEAR = "kept", "duplicate", "contaminated", "near_duplicate"
# codes of what happens to a record; a flag that drops has the flag's own name
STEPS = (KEPT, *FLAGS, DUPLICATE, CONTAMINATED, NEAR)
REASONS = {
    EMPTY: "the response is blank",
    CUT_OFF: "the response ends in the middle",
    REFUSAL: "the response declines to answer",
    INJECTION: "the text addresses the rater",
    MENTION: "the text may address the rater",
    CONTROL: "the text writes special tokens of models",
}


class Curator:
    """Decides about every record of one raw dataset, then writes what is left.

    Attributes
    ----------
    codes:
        (N,) uint8, indices into :data:`STEPS`: 0 is kept.
    bits:
        (N,) uint8, the flags that stand; bit i is ``FLAGS[i]``.
    repeats:
        What each step found repeated.
    hits:
        The benchmark question that a row shares words with, dropped for it or not.
    settings:
        What is done with what each step finds.
    """

    def __init__(
        self, request: CurationRequest, total: int, work: Workspace, progress: Progress
    ) -> None:
        self.section = request.curation
        self.path, self.total = request.raw / RECORDS, total
        self.work, self.progress = work, progress
        self.index: Decontaminator | None = None
        if self.section.decontamination and request.questions is not None:
            questions = read_questions(request.questions)
            self.index = Decontaminator(questions, self.section.decontamination_ngram)
        self.settings = _settings(self.section, compares=self.index is not None)
        self.codes = np.zeros(total, np.uint8)
        self.bits = np.zeros(total, np.uint8)
        self.repeats: dict[str, Repeats] = {}
        self.hits: dict[int, Hit] = {}
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

    def _left(self, part: slice = slice(None)) -> np.ndarray:
        """Return which rows of a part no step dropped so far, counted from its start."""
        return np.flatnonzero(self.codes[part] == 0)

    # --- what becomes of each record ------------------------------------------------------------

    def decide(self) -> None:
        """Look at every record and run the steps."""
        digests = self.work.folder / "digests.parquet"
        with ParquetStream(digests, compression="none") as sink:
            for start, batch in self._batches(list(TEXTS)):
                self._look(start, batch, sink)
                self._report(start + batch.num_rows, share=0.6)
        if self.section.exact_duplicates and sink.rows:
            self._drop_repeats(DUPLICATE, exact_duplicates(self.work, digests, self.path))
        rows = np.fromiter(self.hits, np.int64, len(self.hits))
        self.codes[rows[self.codes[rows] == 0]] = STEPS.index(CONTAMINATED)
        if self.section.near_duplicates.enabled:
            self._drop_near()

    def _look(self, start: int, batch: pa.RecordBatch, digests: ParquetStream) -> None:
        """Find flags and contamination, and take the digests of the normal forms that stay."""
        columns = [batch.column(name).to_pylist() for name in TEXTS]
        normal = list(map(normal_record, *columns))
        part = slice(start, start + batch.num_rows)
        self._flag(part, flag_batch(normal, columns[2]))
        alive = self._left(part)
        if self.section.exact_duplicates and len(alive):
            by = self.section.duplicates_by
            taken = [duplicate_digest(normal[i], columns[2][i], by) for i in alive.tolist()]
            digests.write(digest_batch(alive + start, taken))
        if self.index is not None:
            for row, texts in enumerate(normal, start):
                if (hit := self.index.hit(*texts.split("\n"))) is not None:
                    self.hits[row] = hit

    def _flag(self, part: slice, found: np.ndarray) -> None:
        """Enter the flags of some rows: drop what the options say, forget what they ignore."""
        self.bits[part] = found
        codes, bits = self.codes[part], self.bits[part]
        for index, name in enumerate(FLAGS):
            flagged = (bits >> index & 1).astype(bool)
            if self.settings[name] == "drop":
                codes[flagged & (codes == 0)] = STEPS.index(name)
            elif self.settings[name] == "ignore":
                bits[flagged] &= ~np.uint8(1 << index)

    def _drop_repeats(self, step: str, found: Repeats) -> None:
        self.codes[found.rows] = STEPS.index(step)
        self.repeats[step] = found

    def _drop_near(self) -> None:
        """Drop near duplicates among what is left."""
        options, rows = self.section.near_duplicates, self._left()

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
        self._drop_repeats(NEAR, replace(found, rows=rows[found.rows]))

    def _reason(self, step: str, row: int) -> str:
        """Return why a step dropped a row."""
        if step == CONTAMINATED:
            hit = self.hits[row]
            return f"shares a run of words with {hit.benchmark}/{hit.question_id}: {hit.gram}"
        if step not in self.repeats:
            return REASONS[step]
        instead, similarity = self.repeats[step].of(row)
        if step == NEAR:
            return f"is {similarity:.3f} similar to {instead}"
        by = self.section.duplicates_by
        same = by if isinstance(by, str) else " and ".join(by)
        if by == "record":
            same = "instruction and the very same response"
        return f"has the same {same} as {instead}"

    # --- what is written ------------------------------------------------------------------------

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
        alive = self._left(part)
        bits = self.bits[part][alive]
        kept = batch if len(alive) == batch.num_rows else batch.take(pa.array(alive))
        kept = pa.record_batch([*kept.columns, _flag_lists(bits)], schema=CURATED_SCHEMA)
        self.preview += preview_rows(kept, EXAMPLES - len(self.preview))
        for index, name in enumerate(FLAGS):
            for row in np.flatnonzero(bits >> index & 1)[:EXAMPLES].tolist():
                self._keep_example(name, kept, row, REASONS[name] + _matched(name, kept, row))
        return kept

    def _write_dropped(self, batch: pa.RecordBatch, start: int, handle: IO[bytes]) -> None:
        codes = self.codes[start : start + batch.num_rows]
        for index in np.flatnonzero(codes).tolist():
            step = STEPS[codes[index]]
            reason = self._reason(step, start + index) + _matched(step, batch, index)
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
        tally = np.bincount(self.codes, minlength=len(STEPS)).tolist()
        steps = dict(zip(STEPS, tally, strict=True))
        return {
            "raw": self.done,
            "kept": steps[KEPT],
            "rejected": sum(steps[name] for name in FLAGS),
            **{name: steps[name] for name in (DUPLICATE, NEAR, CONTAMINATED)},
            **{f"dropped_{name}": steps[name] for name in FLAGS},
            **{f"flagged_{n}": int((self.bits >> i & 1).sum()) for i, n in enumerate(FLAGS)},
        }

    def details(self) -> dict[str, Any]:
        """Return what the asset's page shows: steps, examples, contamination, first records."""
        counts = self.counts()
        steps = [
            {
                "step": name,
                "setting": setting,
                "found": counts.get(f"flagged_{name}", counts.get(name)),
                "dropped": counts.get(f"dropped_{name}", counts.get(name)),
            }
            for name, setting in self.settings.items()
        ]
        return {
            "steps": steps,
            "examples": self.examples,
            "decontamination": self._contamination(),
            "preview": self.preview,
        }

    def _contamination(self) -> dict[str, Any]:
        """Return how many records each benchmark cost, and what was compared."""
        if self.index is None:
            return {"checked": False}
        dropped = np.flatnonzero(self.codes == STEPS.index(CONTAMINATED)).tolist()
        hits = [self.hits[row] for row in dropped]
        return {
            "checked": True,
            "ngram": self.index.ngram,
            "questions": dict(self.index.questions),
            "questions_compared_as_a_whole": dict(self.index.too_short),
            "contaminated": dict(Counter(hit.benchmark for hit in hits)),
            "contained_questions": len({(hit.benchmark, hit.question_id) for hit in hits}),
        }


def _settings(section: CurationSection, *, compares: bool) -> dict[str, str]:
    """Return what is done with what each step finds; ``compares``: with benchmark questions."""
    return {
        EMPTY: section.empty_responses,
        CUT_OFF: section.cut_off_responses,
        REFUSAL: section.refusals,
        INJECTION: section.rating_injection,
        MENTION: "ignore" if section.rating_injection == "ignore" else "flag",
        CONTROL: "flag",
        DUPLICATE: "drop" if section.exact_duplicates else "off",
        CONTAMINATED: "drop" if compares else "off",
        NEAR: "drop" if section.near_duplicates.enabled else "off",
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
