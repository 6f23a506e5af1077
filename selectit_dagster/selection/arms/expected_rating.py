"""Expected rating: the mean of the rating distribution instead of SelectIT's token level."""

from __future__ import annotations

import numpy as np

from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import Floats, TokenScoreArm


@register("expected-rating")
class ExpectedRating(TokenScoreArm):
    """E = sum_k k P'_k per prompt, mean over prompts divided by 1 + α std (arXiv 2509.24678).

    What a scorer collection publishes under the name SelectIT is this score.
    """

    title = "the best by the expected rating"
    score_means = "expected rating over 1 + α times its spread between prompts"

    def token_scores(self, p: Floats) -> Floats:
        """Return sum_k k P'_k."""
        return np.asarray(p @ np.arange(1.0, p.shape[-1] + 1))
