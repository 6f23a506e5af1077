"""Chunks of records: read, matched with what is stored, tokenised and planned ahead.

A chunk is the unit of planning and becomes one part file; only a few are in memory at a
time, whatever the dataset's size.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import Tokens
from selectit_dagster.inference.failures import is_device_failure
from selectit_dagster.rating.planned_batches import PlannedBatch, RatedBatch, plan_by_prompt
from selectit_dagster.rating.prompts import rated_instruction
from selectit_dagster.rating.score_folder import RowSource
from selectit_dagster.rating.score_journal import Journal, JournalRow, read_journal
from selectit_dagster.rating.score_store import FAILED, NOT_ASKED, OK, PENDING, Ratings
from selectit_dagster.rating.token_rows import RowMaker

COLUMNS = ("record_id", "instruction", "input", "response")


@dataclass
class RecordChunk:
    """Some records of the dataset, in its order."""

    index: int
    record_ids: list[str]
    texts: list[tuple[str, str]]


def count_records(path: Path) -> int:
    """Return the number of records, after a check of the columns.

    Raises
    ------
    UserError
        When the file is missing, is no Parquet file or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names, rows = set(file.schema_arrow.names), file.metadata.num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"the records {path} cannot be read: {error}", hint="materialise curated_dataset first"
        ) from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r}, found {sorted(names)}",
            hint="make the curated dataset again",
        )
    return int(rows)


def read_chunks(path: Path, size: int) -> Iterator[RecordChunk]:
    """Yield the records of a Parquet file, ``size`` at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=size, columns=list(COLUMNS))
        carried: list[dict[str, str]] = []
        index = 0
        for batch in batches:
            # a batch may end early at a row group's border: chunks are cut evenly all the same
            carried += batch.to_pylist()
            while len(carried) >= size:
                yield _chunk(index, carried[:size])
                carried, index = carried[size:], index + 1
        if carried:
            yield _chunk(index, carried)


def _chunk(index: int, rows: list[dict[str, str]]) -> RecordChunk:
    texts = [(rated_instruction(r["instruction"], r["input"]), r["response"]) for r in rows]
    return RecordChunk(index, [row["record_id"] for row in rows], texts)


def text_key(text: tuple[str, str]) -> str:
    """Return the digest of a rated text: what stored rows are known by, 128 bits in hex."""
    digest = hashlib.blake2b(digest_size=16)
    for part in text:
        content = part.encode("utf-8", errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


@dataclass
class ChunkWork:
    """One chunk on its way to its part file; ``path`` is that file once it is written.

    ``notes`` says by (record, prompt) how a response was cut or why a row is not rated.
    """

    index: int
    ratings: Ratings
    reused: int = 0
    resumed: int = 0
    notes: dict[tuple[int, int], str] = field(default_factory=dict)
    batches: list[PlannedBatch] = field(default_factory=list)
    journal: Journal | None = None
    path: Path | None = None

    @property
    def pending(self) -> int:
        """Rows that are still to be rated."""
        return int((self.ratings.status == PENDING).sum())

    def resume(self, path: Path) -> None:
        """Enter the journal's rows and leave out the batches that it holds whole."""
        content = read_journal(path)
        if content is None:
            return
        for row in content.rows:
            known = row.record < len(self.ratings.keys)
            known = known and row.prompt < self.ratings.status.shape[1]
            again = row.probabilities is None and is_device_failure(row.reason)
            if known and not again and self.ratings.keys[row.record] == row.key:
                self.enter(row)
                self.resumed += 1
        self.batches = [left for batch in self.batches if (left := self.left_of(batch))]

    def left_of(self, batch: PlannedBatch) -> PlannedBatch | None:
        """Return the rows of a batch that are still to be rated; None when there are none."""
        kept = [n for n, at in enumerate(batch.targets) if self.ratings.status[at] == PENDING]
        if not kept:
            return None
        return PlannedBatch(tuple(batch.targets[n] for n in kept), batch.tokens.take(kept))

    def failed_records(self) -> dict[int, str]:
        """Return why a prompt failed, by record; not being asked is no failure."""
        failed = np.argwhere(self.ratings.status == FAILED).tolist()
        reasons = {i: self.ratings.reasons[i, k] for i, k in failed}
        return {i: reason for i, reason in reasons.items() if not reason.startswith(NOT_ASKED)}

    def take(self, planned: PlannedBatch, rated: RatedBatch) -> None:
        """Enter the ratings of a batch and append them to the journal."""
        rows = []
        for at, (record, prompt) in enumerate(planned.targets):
            reason = rated.reasons.get(at)
            p = None if reason else rated.probabilities[at]
            mass = None if reason else float(rated.rating_mass[at])
            note = reason or self.notes.get((record, prompt))
            values = None if p is None else [float(x) for x in p]
            key = self.ratings.keys[record]
            rows.append(JournalRow(record, prompt, key, values, mass, note))
            self.enter(rows[-1])
        if self.journal is not None:
            self.journal.append(rows)

    def enter(self, row: JournalRow) -> None:
        """Enter one row."""
        at = (row.record, row.prompt)
        self.ratings.status[at] = FAILED if row.probabilities is None else OK
        if row.probabilities is not None:
            self.ratings.probabilities[at] = row.probabilities
            self.ratings.rating_mass[at] = row.rating_mass
        if row.reason is not None:
            self.ratings.reasons[at] = row.reason


@dataclass(frozen=True)
class ChunkMaker:
    """Makes a chunk ready for rating: everything that needs no model."""

    rows: RowMaker
    num_ratings: int
    budget: int
    source: RowSource

    @functools.cached_property
    def prefixes(self) -> tuple[Tokens, ...]:
        """Per prompt, the tokens that its rows share."""
        return self.rows.shared_prefixes()

    def prepare(self, chunk: RecordChunk, journal: Path) -> ChunkWork:
        """Return the chunk's work: what is reused or resumed is filled in, the rest planned."""
        keys = [text_key(text) for text in chunk.texts]
        digests = [prompt.digest for prompt in self.rows.prompts]
        ratings = Ratings.empty(chunk.record_ids, keys, len(digests), self.num_ratings)
        work = ChunkWork(chunk.index, ratings, self.source.fill(ratings, digests))
        wanted = [(i, k) for i, k in np.argwhere(ratings.status == PENDING).tolist()]
        made = self.rows.make(chunk.texts, wanted)
        for row in made:
            if row.reason is not None:
                work.notes[row.record, row.prompt] = row.reason
            if row.tokens is None:
                ratings.status[row.record, row.prompt] = row.status
                ratings.reasons[row.record, row.prompt] = str(row.reason)
        work.batches = plan_by_prompt(made, self.prefixes, self.budget)
        work.resume(journal)
        return work
