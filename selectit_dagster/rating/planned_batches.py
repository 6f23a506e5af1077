"""Batches of token rows: planned by length, and what came out of them.

A plan is a pure function of its rows and the budget, so a resumed run plans the same
batches as the run that was stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selectit_dagster.inference.backends.protocol import BatchScores, TokenBatch, Tokens
from selectit_dagster.rating.levels import rating_distribution
from selectit_dagster.rating.score_store import Floats
from selectit_dagster.rating.token_rows import TokenRow

# a row this much shorter than the longest of a batch begins the next one
_SHORTEST_SHARE = 0.7
_EMPTY = np.empty(0, dtype=np.int32)
# below the smallest normal float32 the rating tokens' probabilities have no digits left
_VANISHED = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class PlannedBatch:
    """A batch and the (record, prompt) that each of its rows is for."""

    targets: tuple[tuple[int, int], ...]
    tokens: TokenBatch

    @property
    def prompt(self) -> int:
        """The prompt of all rows."""
        return self.targets[0][1]


def plan_by_prompt(
    rows: Sequence[TokenRow], prefixes: Sequence[Tokens], budget: int
) -> list[PlannedBatch]:
    """Return batches of one prompt each, whose prefix their rows share.

    A row that does not begin with its prompt's prefix goes into a batch without one.
    """
    groups: dict[tuple[int, bool], list[tuple[TokenRow, Tokens]]] = defaultdict(list)
    for row in rows:
        if row.tokens is None:
            continue
        prefix = prefixes[row.prompt]
        size = len(prefix)
        shares = 0 < size < len(row.tokens) and np.array_equal(row.tokens[:size], prefix)
        suffix = row.tokens[size:] if shares else row.tokens
        groups[row.prompt, not shares].append((row, suffix))
    planned = []
    for (prompt, bare), group in sorted(groups.items(), key=lambda item: item[0]):
        for some in _packed(group, budget):
            planned.append(_batch(some, _EMPTY if bare else prefixes[prompt]))
    return planned


def _packed(
    group: list[tuple[TokenRow, Tokens]], budget: int
) -> list[list[tuple[TokenRow, Tokens]]]:
    """Cut rows, longest first, into runs of at most ``budget`` positions, padding included."""
    ordered = sorted(group, key=lambda item: (-len(item[1]), item[0].record))
    runs: list[list[tuple[TokenRow, Tokens]]] = []
    longest = 0
    for row, suffix in ordered:
        full = bool(runs) and (len(runs[-1]) + 1) * longest > budget
        if not runs or full or len(suffix) < _SHORTEST_SHARE * longest:
            runs.append([])
            longest = len(suffix)
        runs[-1].append((row, suffix))
    return runs


def _batch(some: list[tuple[TokenRow, Tokens]], prefix: Tokens) -> PlannedBatch:
    return PlannedBatch(
        targets=tuple((row.record, row.prompt) for row, _ in some),
        tokens=TokenBatch(prefix, tuple(suffix for _, suffix in some)),
    )


@dataclass(frozen=True)
class RatedBatch:
    """What came out of a batch: (rows, R) distributions, (rows,) rating mass, reasons by row.

    Every row ends as a distribution or as a reason; none is skipped.
    """

    probabilities: Floats
    rating_mass: Floats
    reasons: dict[int, str]

    @classmethod
    def of(cls, scores: BatchScores) -> RatedBatch:
        """Return the distributions of a batch's log-probabilities."""
        reasons = dict(scores.failures)
        wide = scores.log_probabilities.astype(np.float64)
        finite = np.asarray(np.isfinite(wide).all(axis=1))
        mass = np.exp(np.where(finite[:, None], wide, 0.0)).sum(axis=1)
        good = np.asarray(finite & (mass > _VANISHED))
        for row in np.flatnonzero(~good).tolist():
            missing = "the rating tokens' probabilities vanish" if finite[row] else "not a number"
            if not finite[row] and not np.isnan(wide[row]).any():
                missing = "an infinite output of the model"
            reasons.setdefault(row, missing)
        good[list(scores.failures)] = False
        probabilities = np.full(wide.shape, np.nan, dtype=np.float32)
        if good.any():
            probabilities[good] = rating_distribution(wide[good]).astype(np.float32)
        rating_mass = np.where(good, np.minimum(mass, 1.0), np.nan).astype(np.float32)
        return cls(probabilities, rating_mass, reasons)
