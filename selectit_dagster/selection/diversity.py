"""Diversity: greedy choice on embeddings, alone or times a score."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from selectit_dagster.errors import UserError
from selectit_dagster.experiment.section import Section

if TYPE_CHECKING:
    from selectit_dagster.selection.arms.arm import ArmContext

SIMILARITY = 0.9
_CHUNK = 256
# below this a determinant is 0 within float64: the kernel's rank is used up
_NO_GAIN = 1e-10
_MOST_PAIRS = 20_000
# what sums of float32 cosines are good for; equal gains go to the first row
_GAIN_DECIMALS = 5
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]


class Diversity(Section):
    """How the chosen records are kept apart in the space of the model's embeddings."""

    method: Literal["near", "k-center", "facility-location", "dpp"] = Field(
        "near", description="near: skip near neighbours; the others: greedy, times the score"
    )
    similarity: float = Field(SIMILARITY, gt=-1, le=1, description="near: cosine of neighbours")
    pool: int = Field(
        20_000, ge=1, description="greedy methods look at so many of the best, at least the count"
    )

    @property
    def takes_embeddings(self) -> bool:
        """Whether embeddings are taken."""
        return True


def centred(rows: Matrix) -> Matrix:
    """Return the rows less their mean.

    Mean hidden states of a causal model share one dominating direction, beside which all
    records look alike.
    """
    return rows - rows.mean(axis=0, keepdims=True)


def normalised(rows: Matrix) -> Matrix:
    """Return the rows at unit length; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


def skip_near(embeddings: Matrix, count: int, similarity: float) -> tuple[Indices, list[str]]:
    """Take rows in order unless too like one that was taken; return indices and notes.

    The mean of the first rows is subtracted, see :func:`centred`. When the rows end before
    ``count`` are taken, skipped ones follow in their order.
    """
    unit = normalised(embeddings - embeddings[:_CHUNK].mean(axis=0, keepdims=True))
    taken: list[int] = []
    kept = np.empty((min(count, len(unit)), unit.shape[1]), np.float32)
    skipped: list[int] = []
    for start in range(0, len(unit), _CHUNK):
        block = unit[start : start + _CHUNK]
        near = np.zeros(len(block), bool)
        if taken:
            near = (block @ kept[: len(taken)].T).max(axis=1) > similarity
        among = block @ block.T > similarity
        own = np.zeros(len(block), bool)
        for index in range(len(block)):
            if len(taken) == count:
                break
            if near[index] or (among[index] & own).any():
                skipped.append(start + index)
                continue
            own[index] = True
            kept[len(taken)] = block[index]
            taken.append(start + index)
        if len(taken) == count:
            break
    notes = [f"{len(skipped):,} near neighbours (cosine above {similarity:g}) were skipped"]
    if len(taken) < count:
        notes.append(
            f"only {len(taken):,} records are no near neighbours; the best "
            f"{min(len(skipped), count - len(taken)):,} of the skipped ones fill the selection up"
        )
    return np.array([*taken, *skipped][:count], np.int64), notes


def k_center(embeddings: Matrix, quality: Floats, count: int) -> Indices:
    """Return ``count`` rows: each has the largest quality times distance to those before.

    Distances are Euclidean between rows of unit length. The first is the one of the highest
    quality; of equals the first row goes first.
    """
    unit = normalised(embeddings).astype(np.float64)
    distance = np.full(len(unit), np.inf)
    taken: list[int] = []
    while len(taken) < min(count, len(unit)):
        gain = quality * distance if taken else quality.copy()
        gain[taken] = -np.inf
        taken.append(int(gain.argmax()))
        squared = np.maximum(0.0, 2 - 2 * (unit @ unit[taken[-1]]))
        distance = np.minimum(distance, np.sqrt(squared))
    return np.array(taken, np.int64)


def facility_location(embeddings: Matrix, quality: Floats, count: int) -> Indices:
    """Return ``count`` rows: each raises the sum of best cosines most, times its quality.

    The gain of row i is quality_i * sum_j max(0, cos(i, j) - best_j), best_j the highest
    cosine of row j to a row that is taken, at least 0.
    """
    unit = normalised(embeddings)
    if len(unit) > _MOST_PAIRS:
        raise UserError(
            f"facility location compares all pairs of {len(unit):,} records",
            hint=f"set pool to at most {_MOST_PAIRS:,}, or choose k-center or dpp",
        )
    alike = unit @ unit.T
    best = np.zeros(len(unit), np.float32)

    def gain(index: int) -> float:
        raised = np.maximum(0.0, alike[index] - best).sum(dtype=np.float64)
        return round(float(raised * quality[index]), _GAIN_DECIMALS)

    # gains only fall, so one that was computed before is a bound on what it is now
    heap = [(-gain(index), index, 0) for index in range(len(unit))]
    heapq.heapify(heap)
    taken: list[int] = []
    while len(taken) < min(count, len(unit)):
        _, index, known = heapq.heappop(heap)
        if known < len(taken):
            heapq.heappush(heap, (-gain(index), index, len(taken)))
            continue
        taken.append(index)
        best = np.maximum(best, alike[index])
    return np.array(taken, np.int64)


def dpp(embeddings: Matrix, quality: Floats, count: int) -> Indices:
    """Return ``count`` rows by greedy MAP of a DPP with kernel quality_i quality_j cos(i, j).

    Each row raises the determinant of the taken rows' kernel most (Chen et al. 2018,
    arXiv 1709.05135, algorithm 1). No set larger than the width of the embeddings has a
    determinant above 0: then a new round begins among the rows that are left.
    """
    vectors = embeddings.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors *= quality[:, None] / np.where(norms > 0, norms, 1)
    free = np.ones(len(vectors), bool)
    taken: list[int] = []
    while len(taken) < min(count, len(vectors)):
        gain = np.round((vectors**2).sum(axis=1), 12)
        steps: list[Floats] = []
        before = len(taken)
        while len(taken) < min(count, len(vectors)):
            now = np.where(free, gain, -np.inf)
            best = int(now.argmax())
            if now[best] <= _NO_GAIN and len(taken) > before:
                break
            free[best] = False
            taken.append(best)
            if now[best] <= _NO_GAIN:
                break
            done = np.array(steps) if steps else np.zeros((0, len(vectors)))
            step = (vectors @ vectors[best] - done.T @ done[:, best]) / np.sqrt(now[best])
            steps.append(step)
            gain = gain - step**2
    return np.array(taken, np.int64)


Greedy = Callable[[Matrix, Floats, int], Indices]
METHODS: dict[str, Greedy] = {
    "k-center": k_center,
    "facility-location": facility_location,
    "dpp": dpp,
}


def spread(
    setting: Diversity, embeddings: Matrix, quality: Floats, count: int
) -> tuple[Indices, list[str]]:
    """Return ``count`` rows of candidates that come best first, and notes."""
    if setting.method == "near":
        return skip_near(embeddings, count, setting.similarity)
    pool = min(len(embeddings), max(count, setting.pool))
    found = METHODS[setting.method](centred(embeddings[:pool]), quality[:pool], count)
    left = len(embeddings) - pool
    return found, [f"{left:,} candidates below the best {pool:,} were not looked at"] * bool(left)


def pool_of(ids: Sequence[str], size: int, seed: int) -> tuple[Indices, list[str]]:
    """Return the indices of a seeded draw of ``size`` ids, in their order, and notes."""
    if len(ids) <= size:
        return np.arange(len(ids)), []
    keys = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in ids]
    kept = sorted(sorted(range(len(ids)), key=keys.__getitem__)[:size])
    return np.array(kept), [f"{len(ids) - size:,} candidates outside the pool were not looked at"]


def candidate_rows(context: ArmContext, path: Path) -> tuple[list[str], Floats, Indices]:
    """Return ids and scores of the candidates, best first, and their rows in a pass's file."""
    query = (
        "SELECT c.record_id, c.score, e.row FROM "
        f"{context.candidates} c JOIN (SELECT record_id, file_row_number AS row FROM "
        f"{context.work.table(path, row_numbers=True)}) e USING (record_id) "
        "ORDER BY c.rank NULLS LAST, c.record_id"
    )
    ids: list[str] = []
    scores, rows = [np.empty(0)], [np.empty(0, np.int64)]
    for batch in context.work.batches(query):
        ids += batch.column(0).to_pylist()
        scores.append(batch.column(1).to_numpy(zero_copy_only=False).astype(np.float64))
        rows.append(batch.column(2).to_numpy().astype(np.int64))
    return ids, np.concatenate(scores), np.concatenate(rows)


def written_order(context: ArmContext, ids: Sequence[str], scores: Floats | None) -> str:
    """Write ids and scores down in this order and return the query that gives them so."""
    import pyarrow as pa

    order = pa.record_batch(
        {
            "record_id": pa.array(list(ids), pa.string()),
            "score": pa.nulls(len(ids), pa.float64()) if scores is None else pa.array(scores),
            "place": pa.array(range(len(ids)), pa.int64()),
        }
    )
    return f"SELECT record_id, score FROM {context.stored('order', [order])} ORDER BY place"
