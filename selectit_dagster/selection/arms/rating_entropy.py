"""Rating entropy: the records of whose rating the models are surest."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import Floats, TokenScoreArm


@register("rating-entropy")
class RatingEntropy(TokenScoreArm):
    """H = -sum_k P'_k log P'_k in nats, mean over the prompts, the lowest first."""

    title = "the lowest entropy of the rating distribution"
    score_means = "entropy of the rating distribution, in nats"
    higher_is_better = False
    alpha: float | None = Field(0.0, ge=0, le=0, description="the mean over the prompts alone")

    def token_scores(self, p: Floats) -> Floats:
        """Return the entropy of each prompt's distribution; 0 log 0 is 0."""
        logs = np.log(p, out=np.zeros_like(p), where=p > 0)
        return np.asarray(-(p * logs).sum(axis=-1))
