"""From an arm's order to the chosen records: size, quota, sampling, diversity, weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.selection.diversity import spread
from selectit_dagster.selection.quota import apportion, groups_of, rows_of, shares_of
from selectit_dagster.selection.weighting import drawn_order, weights_of

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.selection.arms.arm import ArmContext
    from selectit_dagster.selection.subset import SelectionRequest

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass
class Choice:
    """What was chosen.

    Attributes
    ----------
    table:
        SQL expression of the chosen records: ``record_id``, ``rank``, ``score`` and, where they
        are ``weighted``, ``weight``.
    count:
        Number of records.
    cut:
        ``last_selected`` and ``first_rejected`` score.
    quota:
        Per group ``candidates``, ``selected`` and what one order over all would have taken.
    """

    table: str
    count: int
    cut: dict[str, float | None]
    notes: list[str] = field(default_factory=list)
    quota: list[dict[str, Any]] = field(default_factory=list)
    tokens: int | None = None
    weighted: bool = False


def choose(
    request: SelectionRequest,
    order: str,
    count: int,
    context: ArmContext,
    *,
    higher_is_better: bool | None,
) -> Choice:
    """Choose from an arm's order, the table of ``record_id``, ``rank`` and ``score``.

    Raises
    ------
    UserError
        When nothing can be chosen.
    ArtefactError
        When the order has fewer records than ``count``, which the ranking promises.
    """
    rule = request.rule
    if count < 1:
        raise _nothing_left()
    if request.own_size or rule.quota or rule.diversity or rule.weights:
        return _picked(request, order, count, context, higher_is_better)
    found, last, beyond = context.work.row(
        f"SELECT count(*), max(score) FILTER (rank = {count}), "
        f"max(score) FILTER (rank = {count + 1}) FROM {order}"
    )
    if found < count:
        raise ArtefactError(
            f"{count:,} records were to be chosen, the arm has {found:,}",
            hint="materialise the ranking again",
        )
    table = f"(SELECT record_id, rank, score FROM {order} WHERE rank <= {count})"
    return Choice(table, count, {"last_selected": last, "first_rejected": beyond})


def _picked(
    request: SelectionRequest, order: str, count: int, context: ArmContext, better: bool | None
) -> Choice:
    """Choose with the whole order in memory."""
    arm, by_tokens = request.rule, request.size_rule == "tokens"
    ids, scores = _ordered(order, context)
    if arm.weights is not None and arm.weights.sample:
        chance = weights_of(arm.weights, scores, higher_is_better=better)
        drawn = drawn_order(arm.weights, ids, chance)
        ids, scores = [ids[i] for i in drawn], scores[drawn]
    costs = _tokens(request, context, ids) if by_tokens else np.ones(len(ids))
    budget = _budget(request, count, scores, better)
    names, codes = ["all"], np.zeros(len(ids), np.int64)
    if arm.quota is not None:
        names, codes = groups_of(arm.quota, context, ids)
    available = np.bincount(codes, costs, minlength=len(names)).astype(np.float64)
    shares = available if arm.quota is None else shares_of(arm.quota, names, available)
    limits = apportion(min(budget, available.sum()), available, shares, whole=not by_tokens)
    notes: list[str] = []
    embeddings = None if arm.diversity is None else rows_of(context, ids)
    quality = _quality(scores, better)
    taken: list[Indices] = []
    for group, limit in enumerate(limits.tolist()):
        rows = np.flatnonzero(codes == group)
        if arm.diversity is not None and embeddings is not None and limit:
            most = len(rows) if by_tokens else round(limit)
            found, said = spread(arm.diversity, embeddings[rows], quality[rows], most)
            rows = rows[found]
            notes += [f"{names[group]}: {note}" if len(names) > 1 else note for note in said]
        taken.append(rows[np.cumsum(costs[rows]) <= limit + 1e-9])
    chosen = np.sort(np.concatenate(taken))
    if not len(chosen):
        raise _nothing_left()
    weights = None
    if arm.weights is not None and not arm.weights.sample:
        weights = weights_of(arm.weights, scores[chosen], higher_is_better=better)
    table = context.stored("chosen", [_batch([ids[i] for i in chosen], scores[chosen], weights)])
    rest = np.setdiff1d(np.arange(len(ids)), chosen, assume_unique=True)
    ends = {"last_selected": chosen[-1:], "first_rejected": rest[:1]}
    cut = {
        name: None if np.isnan(scores[at]).any() or not len(at) else float(scores[at][0])
        for name, at in ends.items()
    }
    choice = Choice(table, len(chosen), cut, notes, weighted=weights is not None)
    if arm.quota is not None:
        alone = np.flatnonzero(np.cumsum(costs) <= limits.sum() + 1e-9)
        choice.quota = _table(names, codes, chosen, alone)
    if by_tokens:
        choice.tokens = int(costs[chosen].sum())
    return choice


def _nothing_left() -> UserError:
    return UserError(
        "nothing can be chosen: size, quota, threshold and marks leave no record",
        hint="see the arm's size and quota, and selection.review",
    )


def _ordered(order: str, context: ArmContext) -> tuple[list[str], Floats]:
    ids: list[str] = []
    scores = [np.empty(0)]
    for batch in context.work.batches(f"SELECT record_id, score FROM {order} ORDER BY rank"):
        ids += batch.column("record_id").to_pylist()
        scores.append(batch.column("score").to_numpy(zero_copy_only=False))
    return ids, np.concatenate(scores)


def _budget(request: SelectionRequest, count: int, scores: Floats, better: bool | None) -> float:
    """Return how many records, or tokens, may be chosen."""
    if not request.own_size:
        return float(count)
    if request.size_rule == "tokens":
        return float(request.size)
    if better is None:
        raise UserError(
            "a threshold needs an arm whose order is by its score", hint="give a share or a count"
        )
    reached = scores >= request.size if better else scores <= request.size
    return float(reached.sum())


def _tokens(request: SelectionRequest, context: ArmContext, ids: list[str]) -> Floats:
    """Return (n,) the tokens of each record as it is trained in the Alpaca template."""
    from selectit_dagster.inference.model_loading import load_tokenizer
    from selectit_dagster.inference.prompt_templates import render_prompt

    if request.tokenizer is None:
        raise UserError(
            "a token budget needs a tokenizer", hint="give a tuning section or a scoring model"
        )
    tokenizer = load_tokenizer(request.tokenizer)
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
    counts = {
        name: np.bincount(rows, minlength=len(names)).tolist()
        for name, rows in (
            ("candidates", codes),
            ("selected", codes[chosen]),
            ("without_quota", codes[alone]),
        )
    }
    return [
        {"group": name, **{what: found[group] for what, found in counts.items()}}
        for group, name in enumerate(names)
    ]


def _batch(ids: list[str], scores: Floats, weights: Floats | None) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.record_batch(
        {
            "record_id": pa.array(ids, pa.string()),
            "rank": pa.array(np.arange(1, len(ids) + 1, dtype=np.int32)),
            "score": pa.array(scores, pa.float64(), from_pandas=True),
            **({} if weights is None else {"weight": pa.array(weights, pa.float64())}),
        }
    )
