"""What is counted and summed up while a ranking is written, without holding it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_EXAMPLES = 10
_BINS = 20
_QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


class ScoreSummary:
    """Minimum, quantiles, mean, spread and histogram of scores that come from the best down.

    Parameters
    ----------
    count, low, high:
        Number of scores, the lowest and the highest: known before the first one comes, so
        that nothing but a batch is held.
    """

    def __init__(self, count: int, low: float, high: float) -> None:
        self.count = count
        self.range = low, high
        self._counts = np.zeros(_BINS, np.int64)
        self._edges = np.histogram_bin_edges(np.empty(0), _BINS, self.range)
        places = [self._places(share) for share in _QUANTILES.values()]
        self._wanted = dict.fromkeys(sorted({p for low, high, _ in places for p in (low, high)}))
        self._seen = self._distinct = 0
        self._mean = self._squares = 0.0
        self._last: float | None = None

    def _places(self, share: float) -> tuple[int, int, float]:
        """Return the places from the top between which a quantile lies, and how far between."""
        above = (self.count - 1) * (1 - share)
        return math.floor(above), math.ceil(above), above - math.floor(above)

    def add(self, scores: Floats) -> None:
        """Add the next scores, which are at most the ones before."""
        if not scores.size:
            return
        for place in self._wanted:
            if self._seen <= place < self._seen + scores.size:
                self._wanted[place] = float(scores[place - self._seen])
        self._distinct += int((scores[1:] != scores[:-1]).sum()) + int(scores[0] != self._last)
        self._last = float(scores[-1])
        self._counts += np.histogram(scores, bins=self._edges)[0]
        # means and squares of the parts, put together as Chan et al. 1983 do
        total, mean = self._seen + scores.size, float(scores.mean())
        shift = mean - self._mean
        self._squares += float(((scores - mean) ** 2).sum())
        self._squares += shift**2 * self._seen * scores.size / total
        self._mean += shift * scores.size / total
        self._seen = total

    def as_dict(self) -> dict[str, Any]:
        """Return the figures; nothing where there was no score."""
        if not self._seen:
            return {}
        low, high = self.range
        quantiles = {}
        for name, share in _QUANTILES.items():
            first, second, way = self._places(share)
            upper, lower = self._wanted[first], self._wanted[second]
            if upper is not None and lower is not None:
                quantiles[name] = upper + (lower - upper) * way
        return {
            "min": low,
            "max": high,
            "mean": self._mean,
            "std": math.sqrt(self._squares / self._seen),
            **quantiles,
            "distinct": self._distinct,
            "histogram": {"counts": self._counts.tolist(), "edges": self._edges.tolist()},
        }


class Tally:
    """What is counted while the ranking is written."""

    def __init__(self, summary: ScoreSummary) -> None:
        self.summary = summary
        self.records = self.ranked = 0
        self.statuses: Counter[str] = Counter()
        self.examples: list[dict[str, str]] = []
        self._excluded = hashlib.sha256()

    def exclude(self, record_id: str, status: str, reason: str) -> None:
        """Count a record that is not ranked; they come in the order of their ids."""
        mark = "\n" if self.statuses else ""
        self._excluded.update((mark + repr(record_id)).encode())
        self.statuses[status] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append({"record_id": record_id, "status": status, "reason": reason})

    @property
    def excluded_sha256(self) -> str:
        """The digest of the ids of all records that are not ranked."""
        return self._excluded.hexdigest()
