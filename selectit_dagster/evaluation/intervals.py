"""A benchmark's score with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_LEVEL_Z = 1.959963984540054
_RESAMPLES = 2000
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Score:
    """A score in [0, 1], its 95 % interval, and how many questions it stands on.

    ``groups`` has the mean of each group; where ``aggregate`` is ``macro`` the score is their
    mean, otherwise it is the mean over questions.
    """

    score: float
    interval: tuple[float, float]
    n: int
    metric: str
    method: str
    groups: dict[str, float]
    aggregate: str = "mean"

    def as_json(self) -> dict[str, Any]:
        """Return the form stored in ``scores.json``."""
        return {
            "score": self.score,
            "interval": list(self.interval),
            "n": self.n,
            "metric": self.metric,
            "interval_method": self.method,
            "aggregate": self.aggregate,
            "groups": self.groups,
        }


def summarise(
    values: Sequence[float], groups: Sequence[str], *, metric: str, macro: bool, seed: int = 0
) -> Score:
    """Return the mean over questions, or over groups when ``macro``, with its interval.

    A plain mean of 0/1 values has Wilson's interval, and so have values that are all 0 or all
    1; everything else a percentile bootstrap over questions, within the groups when ``macro``.
    """
    array = np.asarray(values, dtype=np.float64)
    names = np.asarray(groups)
    members = {str(name): array[names == name] for name in sorted(set(groups))}
    means = {name: float(part.mean()) for name, part in members.items()}
    parts = list(members.values()) if macro else [array]
    score = float(np.mean([part.mean() for part in parts]))
    # a bootstrap of equal values has no width, whatever their number
    if np.isin(array, (0.0, 1.0)).all() and (not macro or np.ptp(array) == 0.0):
        interval, method = wilson(int(array.sum()), len(array)), "Wilson"
    else:
        low, high = _bootstrap(parts, seed)
        # equal values give an interval of width 0, up to rounding
        interval = (min(low, score), max(high, score))
        method = "bootstrap within groups" if macro else "bootstrap"
    aggregate = "macro" if macro else "mean"
    return Score(score, interval, len(array), metric, method, means, aggregate)


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion (Wilson 1927)."""
    share, z2 = right / total, _LEVEL_Z**2
    centre = share + z2 / (2 * total)
    half = _LEVEL_Z * np.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    low, high = ((centre + sign * half) / (1 + z2 / total) for sign in (-1, 1))
    # the ends are exact there, and rounding must not move them
    return (0.0 if right == 0 else float(low)), (1.0 if right == total else float(high))


def _bootstrap(parts: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """Return the percentile interval of the mean of the parts' means."""
    generator = np.random.default_rng(seed)
    total = np.zeros(_RESAMPLES)
    for part in parts:
        rows = max(1, _BLOCK // len(part))
        for start in range(0, _RESAMPLES, rows):
            count = min(rows, _RESAMPLES - start)
            drawn = generator.integers(0, len(part), size=(count, len(part)))
            total[start : start + count] += part[drawn].mean(axis=1)
    low, high = np.quantile(total / len(parts), [0.025, 0.975])
    return float(low), float(high)
