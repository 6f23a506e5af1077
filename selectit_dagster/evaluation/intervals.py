"""Resampling of questions, and a benchmark's score with its 95 % interval.

Questions are drawn anew within their group, as the score is the mean over groups. A group of one
or two questions says little or nothing of its own spread: it borrows that of all questions of
its benchmark, which is at least as large (the collapsed strata of survey sampling; Cochran,
Sampling Techniques, 1977, section 5A.12). How sure the spread itself is, is Satterthwaite's
degrees of freedom (1946) over the groups, and every resample is divided by sqrt(chi^2_f / f).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_RESAMPLES = 2000
_LEAST_GROUP = 3  # smaller groups borrow their spread
# drawing one count costs about as much as drawing so many indices
_COUNT_COST = 8
_BLOCK = 1 << 17  # indices at a time: they stay in a core's own cache


@dataclass(frozen=True)
class Questions:
    """How questions make a score: sum over q of ``weights[q] * score[q]``.

    ``weights``: (Q,) float64, summing to 1. ``strata``: (Q,) integers, the group within which
    a question is resampled. ``benchmarks``: (Q,) integers, the benchmark that it belongs to.
    """

    weights: Floats
    strata: Integers
    benchmarks: Integers

    @classmethod
    def mean(cls, count: int) -> Questions:
        """Return the plain mean over ``count`` questions."""
        none = np.zeros(count, dtype=np.int64)
        return cls(np.full(count, 1.0 / max(count, 1)), none, none)

    @classmethod
    def macro(cls, groups: Sequence[str]) -> Questions:
        """Return the mean over groups of the mean over each group's questions."""
        _, strata, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
        weights = 1.0 / (len(sizes) * sizes[strata])
        return cls(weights, strata.astype(np.int64), np.zeros(len(strata), dtype=np.int64))

    @classmethod
    def average(cls, parts: Sequence[Questions]) -> Questions:
        """Return the mean over benchmarks, their questions one after the other."""
        weights = np.concatenate([part.weights / len(parts) for part in parts])
        offsets = np.cumsum([0, *(int(part.strata.max()) + 1 for part in parts)])
        strata = np.concatenate(
            [part.strata + offset for part, offset in zip(parts, offsets, strict=False)]
        )
        sizes = [len(part.weights) for part in parts]
        return cls(weights, strata, np.repeat(np.arange(len(parts)), sizes))

    @property
    def borrowing(self) -> int:
        """The number of groups that are too small to show their own spread."""
        _, sizes, parts = self._groups()
        several = np.bincount(self.benchmarks)[parts] > sizes
        return int(((sizes < _LEAST_GROUP) & several).sum())

    def _groups(self) -> tuple[Integers, Integers, Integers]:
        names, first, sizes = np.unique(self.strata, return_index=True, return_counts=True)
        return names, sizes, self.benchmarks[first]

    def spreads(self, values: Floats) -> Iterator[tuple[float, int, Floats]]:
        """Yield (weight, questions, pool) of each group.

        The mean of ``questions`` draws from the pool's deviations, times the weight, is what
        resampling adds. Deviations are widened by sqrt(n / (n - 1)): a resample of n values
        sees only (n - 1) / n of their variance.
        """
        whole: dict[int, Floats] = {}
        for stratum, size, benchmark in zip(*self._groups(), strict=True):
            inside = self.strata == stratum
            if size < _LEAST_GROUP:
                if benchmark not in whole:
                    whole[benchmark] = _deviations(values[self.benchmarks == benchmark])
                pool = whole[benchmark]
            else:
                pool = _deviations(values[inside])
            yield float(self.weights[inside].sum()), int(size), pool

    def variance(self, values: Floats) -> tuple[float, float]:
        """Return the variance of the weighted mean over questions, and its degrees of freedom."""
        own, below = 0.0, 0.0
        borrowed: dict[int, tuple[float, int]] = {}
        for weight, size, pool in self.spreads(values):
            part = weight**2 * float(pool @ pool) / len(pool) / size
            if size < _LEAST_GROUP:
                # those who borrow from one pool err together
                before = borrowed.get(id(pool), (0.0, 0))[0]
                borrowed[id(pool)] = (before + part, max(len(pool) - 1, 1))
            else:
                own += part
                below += part**2 / (size - 1)
        total = own + sum(part for part, _ in borrowed.values())
        below += sum(part**2 / degrees for part, degrees in borrowed.values())
        return total, (max(1.0, total**2 / below) if below > 0.0 else 1e9)

    def draws(self, values: Floats, resamples: int, generator: np.random.Generator) -> Floats:
        """Return (resamples,) deviations of the weighted mean of ``values`` (Q,)."""
        found = np.zeros(resamples)
        for weight, size, pool in self.spreads(values):
            if pool.any():
                found += weight * _resampled_means(pool, size, resamples, generator)
        return found


def _deviations(values: Floats) -> Floats:
    count = len(values)
    if count < 2:
        # one question: any outcome was possible
        return np.array([-1.0, 1.0])
    return np.asarray((values - values.mean()) * np.sqrt(count / (count - 1)))


def _resampled_means(
    values: Floats, size: int, resamples: int, generator: np.random.Generator
) -> Floats:
    """Return (resamples,) means of ``size`` of ``values``, with replacement, in bounded memory."""
    distinct, counts = np.unique(values, return_counts=True)
    if _COUNT_COST * len(distinct) <= size:
        # right/wrong scores take few values: how often each is drawn is all that matters
        drawn = generator.multinomial(size, counts / len(values), size=resamples)
        return np.asarray(drawn @ distinct / size)
    means = np.empty(resamples)
    rows = max(1, _BLOCK // size)
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        index = generator.integers(0, len(values), size=(block, size), dtype=np.int32)
        means[start : start + block] = values[index].mean(axis=1)
    return means


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
    interval_method: str
    aggregate: str
    groups: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the form stored in ``scores.json``."""
        return {**asdict(self), "interval": list(self.interval)}


def summarise(
    values: Sequence[float], groups: Sequence[str], *, metric: str, macro: bool, seed: int = 0
) -> Score:
    """Return the mean over questions, or over groups when ``macro``, with its interval.

    A plain mean of 0/1 values has Wilson's interval, and so have values that are all 0 or all
    1; everything else a bootstrap over questions, within the groups when ``macro``.
    """
    array = np.asarray(values, dtype=np.float64)
    names = np.asarray(groups)
    means = {str(name): float(array[names == name].mean()) for name in sorted(set(groups))}
    questions = Questions.macro(list(groups)) if macro else Questions.mean(len(array))
    score = float(np.mean(list(means.values()))) if macro else float(array.mean())
    # a bootstrap of equal values has no width, whatever their number
    if np.isin(array, (0.0, 1.0)).all() and (not macro or np.ptp(array) == 0.0):
        interval, method = wilson(int(array.sum()), len(array)), "Wilson"
    else:
        interval = _bootstrap(array, questions, score, seed)
        method = "bootstrap within groups" if macro else "bootstrap"
        if questions.borrowing:
            method += f", {questions.borrowing} small groups with the spread of all questions"
    aggregate = "macro" if macro else "mean"
    return Score(score, interval, len(array), metric, method, aggregate, means)


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return float(low), float(high)


def _bootstrap(
    values: Floats, questions: Questions, score: float, seed: int
) -> tuple[float, float]:
    """Return the interval of the mean; of values within [0, 1] it stays there."""
    generator = np.random.default_rng(seed)
    _, degrees = questions.variance(values)
    draws = questions.draws(values, _RESAMPLES, generator)
    draws *= np.sqrt(degrees / generator.chisquare(degrees, size=_RESAMPLES))
    low, high = np.quantile(score + draws, [0.025, 0.975])
    if values.min() >= 0.0 and values.max() <= 1.0:
        low, high = max(low, 0.0), min(high, 1.0)
    # equal values give an interval of width 0, up to rounding
    return min(float(low), score), max(float(high), score)
