"""Rating margin: how far the preferred rating leads, times the rating."""

from __future__ import annotations

import numpy as np

from selectit_dagster.rating import levels
from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import Floats, TokenScoreArm


@register("rating-margin")
class RatingMargin(TokenScoreArm):
    """(P'_(1) - P'_(2)) S_base per prompt, then the sentence and the model level."""

    title = "the widest lead of the preferred rating, times the rating"
    score_means = "lead of the preferred rating times the rating"

    def token_scores(self, p: Floats) -> Floats:
        """Return the lead of the likeliest rating over the second, times the rating."""
        ordered = np.sort(p, axis=-1)
        return (ordered[..., -1] - ordered[..., -2]) * levels.base_rating(p)
