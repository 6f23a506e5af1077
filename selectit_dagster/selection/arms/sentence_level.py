"""The sentence-level score of one model, without the model level."""

from __future__ import annotations

from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import OneModelArm


@register("sentence-level")
class SentenceLevel(OneModelArm):
    """S_sent (equation 4) of one model: SelectIT with a single rater."""

    title = "the best by one model's sentence-level score"
    score_means = "sentence-level score"
