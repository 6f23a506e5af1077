"""From an arm's order to the chosen records: size, quota, sampling, diversity, weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import ParquetStream
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.selection.diversity import spread
from selectit_dagster.selection.quota import apportion, groups_of, rows_of, shares_of
from selectit_dagster.selection.weighting import drawn_order, weights_of

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.experiment import ModelReference
    from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering

CHOSEN_FILE = "chosen.parquet"
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """How much is chosen: ``count`` records, or by ``tokens`` or ``threshold`` (own score)."""

    count: int | None = None
    tokens: int | None = None
    threshold: float | None = None
    tokenizer: ModelReference | None = None


@dataclass
class Choice:
    """What was chosen.

    Attributes
    ----------
    count:
        Number of records, in ``chosen.parquet`` of the workspace.
    cut:
        ``last_selected`` and ``first_rejected`` score.
    quota:
        Per group ``candidates``, ``selected`` and what one order over all would have taken.
    """

    count: int
    cut: dict[str, float | None]
    notes: list[str] = field(default_factory=list)
    quota: list[dict[str, Any]] = field(default_factory=list)
    tokens: int | None = None


def choose(arm: Arm, ordering: Ordering, size: Size, context: ArmContext) -> Choice:
    """Write the chosen records with rank, score and, where asked for, weight."""
    plain = arm.quota is None and arm.diversity is None and arm.weights is None
    if plain and size.count is not None:
        return _first(ordering, size.count, context)
    return _picked(arm, ordering, size, context)


def _first(ordering: Ordering, count: int, context: ArmContext) -> Choice:
    """Write the first ``count`` records of an order, holding one batch at a time."""
    import pyarrow as pa

    last = beyond = None
    first = 0
    with ParquetStream(context.work.folder / CHOSEN_FILE, compression="lz4") as stream:
        query = f"{ordering.query} LIMIT {count + 1}"
        for batch in context.work.batches(query, as_stored=ordering.as_stored):
            taken = min(batch.num_rows, count - first)
            scores = batch.column("score")
            if taken < batch.num_rows:
                beyond = scores[taken].as_py()
            ranks = pa.array(np.arange(first + 1, first + taken + 1, dtype=np.int32))
            first += taken
            if taken:
                last = scores[taken - 1].as_py()
                ids = batch.column("record_id").slice(0, taken)
                columns = {"record_id": ids, "rank": ranks, "score": scores.slice(0, taken)}
                stream.write(pa.record_batch(columns))
    if first != count:
        raise ArtefactError(
            f"{count:,} records were to be chosen, the arm has {first:,}",
            hint="materialise the ranking again",
        )
    return Choice(first, {"last_selected": last, "first_rejected": beyond})


def _picked(arm: Arm, ordering: Ordering, size: Size, context: ArmContext) -> Choice:
    """Choose with the whole order in memory."""
    ids, scores = _ordered(ordering, context)
    better = ordering.higher_is_better
    if arm.weights is not None and arm.weights.sample:
        chance = weights_of(arm.weights, scores, higher_is_better=better)
        drawn = drawn_order(arm.weights, ids, chance)
        ids, scores = [ids[i] for i in drawn], scores[drawn]
    costs = np.ones(len(ids)) if size.tokens is None else _tokens(context, ids, size)
    budget = _budget(size, scores, better)
    names, codes = ["all"], np.zeros(len(ids), np.int64)
    if arm.quota is not None:
        names, codes = groups_of(arm.quota, context, ids)
    available = np.bincount(codes, costs, minlength=len(names)).astype(np.float64)
    shares = available if arm.quota is None else shares_of(arm.quota, names, available)
    limits = apportion(min(budget, available.sum()), available, shares, whole=size.tokens is None)
    choice = Choice(0, {})
    embeddings = None if arm.diversity is None else rows_of(context, ids)
    quality = _quality(scores, better)
    taken: list[Indices] = []
    for group, limit in enumerate(limits.tolist()):
        rows = np.flatnonzero(codes == group)
        if arm.diversity is not None and embeddings is not None and limit:
            most = len(rows) if size.tokens is not None else round(limit)
            found, notes = spread(arm.diversity, embeddings[rows], quality[rows], most)
            rows = rows[found]
            choice.notes += [
                f"{names[group]}: {note}" if len(names) > 1 else note for note in notes
            ]
        taken.append(rows[np.cumsum(costs[rows]) <= limit + 1e-9])
    chosen = np.sort(np.concatenate(taken))
    if not len(chosen):
        raise UserError(
            "nothing can be chosen: the size, the quota or the threshold leave no record",
            hint="see the arm's size and quota",
        )
    if arm.quota is not None:
        alone = np.flatnonzero(np.cumsum(costs) <= limits.sum() + 1e-9)
        choice.quota = _table(names, codes, chosen, alone)
    if size.tokens is not None:
        choice.tokens = int(costs[chosen].sum())
    weights = None
    if arm.weights is not None and not arm.weights.sample:
        weights = weights_of(arm.weights, scores[chosen], higher_is_better=better)
    _write(context, [ids[i] for i in chosen], scores[chosen], weights)
    rest = np.setdiff1d(np.arange(len(ids)), chosen, assume_unique=True)
    choice.count = len(chosen)
    choice.cut = {
        "last_selected": _number(scores[chosen[-1]]),
        "first_rejected": _number(scores[rest[0]]) if len(rest) else None,
    }
    return choice


def _ordered(ordering: Ordering, context: ArmContext) -> tuple[list[str], Floats]:
    ids: list[str] = []
    scores = [np.empty(0)]
    for batch in context.work.batches(ordering.query, as_stored=ordering.as_stored):
        ids += batch.column("record_id").to_pylist()
        column = batch.column("score").to_numpy(zero_copy_only=False)
        scores.append(column.astype(np.float64))
    return ids, np.concatenate(scores)


def _budget(size: Size, scores: Floats, better: bool | None) -> float:
    """Return how many records, or tokens, may be chosen."""
    if size.tokens is not None:
        return float(size.tokens)
    if size.threshold is None:
        return float(size.count or 0)
    if better is None:
        raise UserError(
            "a threshold needs an arm whose order is by its score", hint="give a share or a count"
        )
    reached = scores >= size.threshold if better else scores <= size.threshold
    return float(reached.sum())


def _tokens(context: ArmContext, ids: list[str], size: Size) -> Floats:
    """Return (n,) the tokens of each record as it is trained in the Alpaca template."""
    from selectit_dagster.inference.model_loading import load_tokenizer
    from selectit_dagster.inference.prompt_templates import render_prompt

    if size.tokenizer is None:
        raise UserError(
            "a token budget needs a tokenizer", hint="give a tuning section or a scoring model"
        )
    tokenizer = load_tokenizer(size.tokenizer)
    found: dict[str, int] = {}
    query = f"SELECT record_id, instruction, input, response FROM {context.texts()}"
    for batch in context.work.batches(query, 4096):
        rows = list(zip(*(c.to_pylist() for c in batch.columns), strict=True))
        texts = [render_prompt("alpaca", i, more) + answer for _, i, more, answer in rows]
        encoded = tokenizer(texts, verbose=False)["input_ids"]
        # and the end token
        found.update((row[0], len(line) + 1) for row, line in zip(rows, encoded, strict=True))
    return np.array([found[name] for name in ids], np.float64)


def _quality(scores: Floats, better: bool | None) -> Floats:
    """Return (n,) positive numbers, the best highest: the score, where it is one.

    Scores below 0 or of which the low ones are better are moved to 0 to 1; without a score
    that orders, the place counts.
    """
    if better is None:
        return 1 - np.arange(len(scores)) / max(1, len(scores))
    if better and (scores >= 0).all():
        return scores
    signed = scores if better else -scores
    return (signed - signed.min()) / (np.ptp(signed) or 1.0)


def _table(
    names: list[str], codes: Indices, chosen: Indices, alone: Indices
) -> list[dict[str, Any]]:
    counts = [np.bincount(codes[rows], minlength=len(names)) for rows in (chosen, alone)]
    candidates = np.bincount(codes, minlength=len(names))
    return [
        {
            "group": name,
            "candidates": int(candidates[group]),
            "selected": int(counts[0][group]),
            "without_quota": int(counts[1][group]),
        }
        for group, name in enumerate(names)
    ]


def _write(context: ArmContext, ids: list[str], scores: Floats, weights: Floats | None) -> None:
    import pyarrow as pa

    columns: dict[str, pa.Array] = {
        "record_id": pa.array(ids, pa.string()),
        "rank": pa.array(np.arange(1, len(ids) + 1, dtype=np.int32)),
        "score": pa.array(scores, pa.float64(), from_pandas=True),
    }
    if weights is not None:
        columns["weight"] = pa.array(weights, pa.float64())
    with ParquetStream(context.work.folder / CHOSEN_FILE, compression="lz4") as stream:
        stream.write(pa.record_batch(columns))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
