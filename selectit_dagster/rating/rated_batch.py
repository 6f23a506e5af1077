"""From a backend's log-probabilities to rating distributions, or reasons why there are none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selectit_dagster.inference.backends.protocol import BatchScores
from selectit_dagster.rating.levels import rating_distribution
from selectit_dagster.rating.score_store import Floats

# below the smallest normal float32 the rating tokens' probabilities have no digits left
_VANISHED = float(np.finfo(np.float32).tiny)


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
