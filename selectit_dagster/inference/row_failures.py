"""Rating a batch whatever happens: too large, broken, or not a number.

Every row ends as a distribution or as a reason; none is skipped and none moves to another
record.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from selectit_dagster.inference.backends.protocol import Backend, BatchTooLargeError, TokenBatch
from selectit_dagster.rating.levels import rating_distribution
from selectit_dagster.rating.score_store import Floats

# below the smallest normal float32 the rating tokens' probabilities have no digits left
_VANISHED = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class RatedBatch:
    """What came out of a batch: (rows, R) distributions, (rows,) rating mass, reasons."""

    probabilities: Floats
    rating_mass: Floats
    reasons: dict[int, str]


@dataclass
class CarefulRater:
    """Rates batches with a backend; halves those that do not fit into memory.

    ``ceiling`` is the largest number of token positions that is still tried, once a batch
    has not fitted; ``halvings`` counts how often one did not.
    """

    backend: Backend
    num_ratings: int
    ceiling: float = float("inf")
    halvings: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rate(self, batch: TokenBatch) -> RatedBatch:
        """Return the ratings of every row; a row that cannot be rated has a reason."""
        reasons: dict[int, str] = {}
        log_p = np.full((len(batch), self.num_ratings), np.nan, dtype=np.float32)
        self._fill(batch, np.arange(len(batch)), log_p, reasons)
        return judged(log_p, reasons)

    def _fill(
        self, batch: TokenBatch, rows: np.ndarray, log_p: Floats, reasons: dict[int, str]
    ) -> None:
        if len(rows) > 1 and batch.positions > self.ceiling:
            self._halves(batch, rows, log_p, reasons)
            return
        try:
            log_p[rows] = self.backend.rate(batch)
        except BatchTooLargeError:
            with self._lock:
                self.halvings += 1
                self.ceiling = min(self.ceiling, max(1, batch.positions - 1))
            if len(rows) == 1:
                reasons[int(rows[0])] = f"out of memory with {len(batch.row(0))} tokens"
            else:
                with self._lock:
                    self.ceiling = min(self.ceiling, max(1, batch.positions // 2))
                self._halves(batch, rows, log_p, reasons)
        except (RuntimeError, ValueError, IndexError) as error:
            if len(rows) == 1:
                reasons[int(rows[0])] = f"the model failed: {str(error).strip()[:200]}"
            else:
                self._halves(batch, rows, log_p, reasons)

    def _halves(
        self, batch: TokenBatch, rows: np.ndarray, log_p: Floats, reasons: dict[int, str]
    ) -> None:
        middle = len(rows) // 2
        for some in (range(middle), range(middle, len(rows))):
            self._fill(batch.take(list(some)), rows[some.start : some.stop], log_p, reasons)


def judged(log_p: Floats, reasons: dict[int, str]) -> RatedBatch:
    """Turn log-probabilities (rows, R) into distributions, or reasons why there is none."""
    wide = log_p.astype(np.float64)
    finite = np.asarray(np.isfinite(wide).all(axis=1))
    mass = np.exp(np.where(finite[:, None], wide, 0.0)).sum(axis=1)
    good = np.asarray(finite & (mass > _VANISHED))
    for row in np.flatnonzero(~good).tolist():
        missing = "the rating tokens' probabilities vanish" if finite[row] else "not a number"
        if not finite[row] and not np.isnan(wide[row]).any():
            missing = "an infinite output of the model"
        reasons.setdefault(row, missing)
    probabilities = np.full(log_p.shape, np.nan, dtype=np.float32)
    if good.any():
        probabilities[good] = rating_distribution(wide[good]).astype(np.float32)
    rating_mass = np.where(good, np.minimum(mass, 1.0), np.nan).astype(np.float32)
    return RatedBatch(probabilities, rating_mass, reasons)
