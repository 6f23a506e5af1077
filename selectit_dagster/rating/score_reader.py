"""Stored rating distributions as a stream of whole records, in bounded memory.

A score folder holds ``part-*.parquet`` with one row per record and rating prompt. The parts
as they are written hold each record's prompts side by side, so a batch can be reshaped; that
is checked row by row, and parts in any other order go through an external sort first.
"""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.manifest import Manifest, require_manifest
from selectit_dagster.errors import ArtefactError, UserError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ["record_id", "prompt_index", "probabilities", "status", "reason"]
# a record has the worst status of its prompts
STATUSES = ("ok", "too_long", "failed")
_ROWS = 1 << 15


class NotGroupedError(Exception):
    """The rows of a record do not lie side by side in prompt order."""

    def __init__(self, record_id: str) -> None:
        super().__init__(record_id)
        self.record_id = record_id


@dataclass(frozen=True)
class StoredBatch:
    """Some records with one model's distributions.

    Attributes
    ----------
    record_ids:
        (n,) strings.
    probabilities:
        (n, K, R) float32, NaN throughout where a prompt's status is not ok.
    status:
        (n,) int8, indices into :data:`STATUSES`: the worst of the record's K prompts.
    reasons:
        The reason of each record whose status is not ok, by its index in the batch.
    """

    record_ids: pa.Array
    probabilities: npt.NDArray[np.float32]
    status: npt.NDArray[np.int8]
    reasons: dict[int, str]


class StoredScores:
    """One model's score folder, for streaming.

    Parameters
    ----------
    name:
        The scoring model's name, for messages.
    folder:
        The score folder, complete.
    num_prompts:
        K: the first K of the stored prompts are read.
    num_ratings:
        R: the number of ratings that the distributions must have.

    Raises
    ------
    ArtefactError
        When the folder is incomplete.
    UserError
        When fewer prompts, or another number of ratings, were stored.
    """

    def __init__(self, name: str, folder: Path, num_prompts: int, num_ratings: int) -> None:
        self.name = name
        self.folder = folder
        self.manifest = require_manifest(folder, made_by=f"uncertainty_scores/{name}")
        self.num_prompts = num_prompts
        self.num_ratings = num_ratings
        self.stored_prompts = stored_prompts(self.manifest)
        names = sorted(self.manifest.files)
        self.parts = [folder / name for name in names if name.startswith("part-")]
        if not self.parts:
            raise ArtefactError(
                f"{folder} lists no part-*.parquet", hint=f"remove {folder} and score again"
            )
        if num_prompts > self.stored_prompts:
            raise UserError(
                f"model {name}: {num_prompts} rating prompts are asked for, "
                f"{self.stored_prompts} are stored",
                hint=f"use num_prompts of at most {self.stored_prompts}, or score again",
            )
        check_ratings(name, self.manifest, self.parts[0], num_ratings)

    def as_stored(self, work: Workspace) -> Iterator[StoredBatch]:
        """Yield all records in the order of the parts.

        Raises
        ------
        NotGroupedError
            When a record's prompts do not lie side by side; use :meth:`sorted` then.
        """
        # not by pyarrow, which cannot read a null in a fixed-size list from Parquet
        rows = (
            batch
            for part in self.parts
            for batch in work.batches(
                f"SELECT {', '.join(COLUMNS)} FROM {work.table(part)}", _ROWS, as_stored=True
            )
        )
        return self._records(rows)

    def sorted(self, work: Workspace) -> Iterator[StoredBatch]:
        """Yield all records by record id, after an external sort.

        Raises
        ------
        ArtefactError
            Naming the record that does not have each prompt exactly once.
        """
        names = ", ".join(COLUMNS)
        tables = [f"SELECT {names} FROM {work.table(part)}" for part in self.parts]
        query = " UNION ALL ".join(tables) + " ORDER BY record_id, prompt_index"
        try:
            yield from self._records(work.batches(query, _ROWS))
        except NotGroupedError as error:
            raise ArtefactError(
                f"model {self.name}: record {error.record_id!r} does not have each of the "
                f"{self.stored_prompts} prompts exactly once in {self.folder}",
                hint="remove that folder and score again",
            ) from error

    def in_any_order(self, work: Workspace) -> Iterator[StoredBatch]:
        """Yield all records for a reader to whom it is the same when one comes twice.

        What was read before the parts turned out not to be grouped comes again.
        """
        try:
            yield from self.as_stored(work)
        except NotGroupedError:
            yield from self.sorted(work)

    def _records(self, rows: Iterator[pa.RecordBatch]) -> Iterator[StoredBatch]:
        for batch in whole_records(rows, self.stored_prompts):
            self._check_layout(batch)
            yield self._decode(batch)

    def _check_layout(self, batch: pa.RecordBatch) -> None:
        """Check that each run of ``stored_prompts`` rows is one record, prompts in order."""
        import pyarrow.compute as pc

        prompts = self.stored_prompts
        ids = batch.column("record_id")
        index = batch.column("prompt_index").to_numpy(zero_copy_only=False)
        wrong = index != np.tile(np.arange(prompts), -(-len(index) // prompts))[: len(index)]
        # rows 0 and 1, 1 and 2, ... are of one record, except where a new record begins
        same = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
        begins = np.arange(1, len(ids)) % prompts == 0
        wrong[1:] |= same == begins
        if len(index) % prompts:
            wrong[-1] = True
        if wrong.any():
            raise NotGroupedError(str(ids[int(wrong.argmax())]))

    def _decode(self, batch: pa.RecordBatch) -> StoredBatch:
        stored, asked = self.stored_prompts, self.num_prompts
        count = batch.num_rows // stored
        values = self._distributions(batch.column("probabilities"))
        codes = self._codes(batch.column("status"))
        # an ok row without numbers must not pass for a score
        lacking = (codes == 0) & np.isnan(values).any(axis=1)
        codes[lacking] = STATUSES.index("failed")
        values[codes != 0] = np.nan
        codes = codes.reshape(count, stored)[:, :asked]
        return StoredBatch(
            record_ids=batch.column("record_id").take(_every(stored, count)),
            probabilities=values.reshape(count, stored, self.num_ratings)[:, :asked],
            status=codes.max(axis=1),
            reasons=self._reasons(batch.column("reason"), codes),
        )

    def _distributions(self, column: pa.Array) -> npt.NDArray[np.float32]:
        """Return (rows, R) float32 from a list column; null rows become NaN."""
        import pyarrow.compute as pc

        ratings = self.num_ratings
        if pc.any(pc.not_equal(pc.list_value_length(column), ratings)).as_py():
            raise ArtefactError(
                f"model {self.name}: a distribution in {self.folder} does not have {ratings} "
                "ratings",
                hint="remove that folder and score again",
            )
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        values = np.full((len(column), ratings), np.nan, dtype=np.float32)
        values[valid] = flat.reshape(-1, ratings)
        return values

    def _codes(self, column: pa.Array) -> npt.NDArray[np.int8]:
        """Return the index in STATUSES of each row's status."""
        column = column.dictionary_encode()
        known = {name: code for code, name in enumerate(STATUSES)}
        names = [str(name) for name in column.dictionary.to_pylist()]
        unknown = sorted(set(names) - set(known))
        if unknown or column.null_count:
            raise ArtefactError(
                f"model {self.name}: unknown status {[*unknown, None][0]!r} in {self.folder}",
                hint="remove that folder and score again",
            )
        table = np.array([known[name] for name in names], dtype=np.int8)
        return table[column.indices.to_numpy(zero_copy_only=False)]

    def _reasons(self, column: pa.Array, codes: npt.NDArray[np.int8]) -> dict[int, str]:
        """Return, for each record that is not ok, the reason of its worst prompt."""
        reasons = {}
        for record in np.flatnonzero(codes.max(axis=1)):
            prompt = int(codes[record].argmax())
            text = column[int(record) * self.stored_prompts + prompt].as_py()
            reasons[int(record)] = text or "its stored distribution is not a set of numbers"
        return reasons


def whole_records(rows: Iterable[pa.RecordBatch], prompts: int) -> Iterator[pa.RecordBatch]:
    """Re-cut a stream of rows so that each batch holds a multiple of ``prompts`` rows.

    A remainder at the very end comes as it is.
    """
    import pyarrow as pa

    carried: pa.RecordBatch | None = None
    for batch in rows:
        if carried is not None:
            head = batch.slice(0, prompts - carried.num_rows)
            batch = batch.slice(head.num_rows)
            carried = pa.Table.from_batches([carried, head]).combine_chunks()
            carried = carried.to_batches()[0]
            if carried.num_rows < prompts:
                continue
            yield carried
        whole = batch.num_rows - batch.num_rows % prompts
        if whole:
            yield batch.slice(0, whole)
        carried = batch.slice(whole) if whole < batch.num_rows else None
    if carried is not None:
        yield carried


def check_ratings(name: str, manifest: Manifest, part: Path, num_ratings: int) -> None:
    """Refuse a model whose stored distributions have another number of ratings.

    Raises
    ------
    UserError
        Naming both numbers.
    """
    import pyarrow.parquet as pq

    kind = pq.read_schema(part).field("probabilities").type
    stored = manifest.fingerprint.get("num_ratings") or getattr(kind, "list_size", num_ratings)
    if stored != num_ratings:
        raise UserError(
            f"model {name}: ratings 1 to {num_ratings} are asked for, 1 to {stored} are stored",
            hint=f"use num_ratings: {stored}, or score again",
        )


def _every(step: int, count: int) -> pa.Array:
    import pyarrow as pa

    return pa.array(np.arange(count) * step)


def stored_prompts(manifest: Manifest) -> int:
    """Return how many rating prompts a score folder holds per record."""
    return int(manifest.counts["prompts"])


def open_scores(
    scores: Sequence[tuple[str, Path]], num_prompts: int, num_ratings: int
) -> list[StoredScores]:
    """Open the score folders, sorted by model name so that their order does not matter."""
    return [StoredScores(n, f, num_prompts, num_ratings) for n, f in sorted(scores)]
