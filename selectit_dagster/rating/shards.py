"""Chunks of records: read, matched with what is stored, tokenised and planned ahead.

A chunk is the unit of planning and becomes one part file; only a few are in memory at a
time, whatever the dataset's size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import Tokens
from selectit_dagster.inference.failures import is_device_failure
from selectit_dagster.rating.length_batches import PlannedBatch, plan_by_prompt
from selectit_dagster.rating.prompts import rated_instruction
from selectit_dagster.rating.rated_batch import RatedBatch
from selectit_dagster.rating.score_folder import RowSource
from selectit_dagster.rating.score_journal import Journal, JournalRow, read_journal
from selectit_dagster.rating.score_store import FAILED, NOT_ASKED, OK, PENDING, Ratings
from selectit_dagster.rating.token_rows import RowMaker, TokenRow

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


@dataclass
class ChunkReader:
    """Reads single chunks of a Parquet file, the same that :func:`read_chunks` yields.

    Holds the row groups read last, so that chunks in about the file's order are cheap.
    """

    path: Path
    size: int
    _groups: tuple[int, ...] = ()
    _table: Any = None

    def read(self, index: int) -> RecordChunk:
        """Return the chunk with that number."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(counts)
            begin, end = index * self.size, min((index + 1) * self.size, int(ends[-1]))
            first, last = np.searchsorted(ends, [begin, end - 1], side="right").tolist()
            groups = tuple(range(first, last + 1))
            if groups != self._groups:
                self._groups = groups
                self._table = file.read_row_groups(list(groups), columns=list(COLUMNS))
        offset = begin - int(ends[first] - counts[first])
        return _chunk(index, self._table.slice(offset, end - begin).to_pylist())


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
    """One chunk on its way to its part file; ``path`` is that file once it is written."""

    index: int
    ratings: Ratings
    notes: dict[tuple[int, int], str]
    batches: list[PlannedBatch]
    reused: int = 0
    resumed: int = 0
    journal: Journal | None = None
    path: Path | None = None

    @property
    def pending(self) -> int:
        """Rows that are still to be rated."""
        return int((self.ratings.status == PENDING).sum())

    def enter_tokenised(self, tokenised: Tokenised) -> None:
        """Enter the batches, the notes, and the rows that cannot be rated."""
        self.batches, self.notes = tokenised.batches, tokenised.notes
        for at, status in tokenised.refused.items():
            self.ratings.status[at] = status
            self.ratings.reasons[at] = tokenised.notes[at]

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
class Tokenised:
    """Rows of a chunk as batches, what is to be noted of some, and rows that cannot be rated.

    ``notes`` says by (record, prompt) how a response was cut or why a row is not rated;
    ``refused`` holds the latter's status.
    """

    batches: list[PlannedBatch]
    notes: dict[tuple[int, int], str]
    refused: dict[tuple[int, int], int]


@dataclass(frozen=True)
class ChunkMaker:
    """Makes a chunk ready for rating: everything that needs no model."""

    rows: RowMaker
    prefixes: tuple[Tokens, ...]
    digests: list[str]
    num_ratings: int
    budget: int
    source: RowSource

    def prepare(self, chunk: RecordChunk, journal: Path | None) -> ChunkWork:
        """Return the chunk's work: what is reused or resumed is filled in, the rest planned."""
        work = self.open(chunk)
        wanted = [(i, k) for i, k in np.argwhere(work.ratings.status == PENDING).tolist()]
        work.enter_tokenised(self.tokenise(chunk.texts, wanted))
        if journal is not None:
            work.resume(journal)
        return work

    def open(self, chunk: RecordChunk) -> ChunkWork:
        """Return the chunk's work with what is reused filled in, and no batches yet."""
        keys = [text_key(text) for text in chunk.texts]
        ratings = Ratings.empty(chunk.record_ids, keys, len(self.digests), self.num_ratings)
        return ChunkWork(chunk.index, ratings, {}, [], self.source.fill(ratings, self.digests))

    def tokenise(self, texts: list[tuple[str, str]], wanted: list[tuple[int, int]]) -> Tokenised:
        """Return the batches of the rows ``wanted`` as (record, prompt) of ``texts``."""
        made = self.rows.make(texts, wanted)
        return Tokenised(
            self.plan(made),
            {(row.record, row.prompt): row.reason for row in made if row.reason is not None},
            {(row.record, row.prompt): row.status for row in made if row.tokens is None},
        )

    def plan(self, rows: list[TokenRow]) -> list[PlannedBatch]:
        """Return the batches of token rows."""
        return plan_by_prompt(rows, self.prefixes, self.budget)
