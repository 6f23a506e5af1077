"""Sentence-R: the sentence level on plain ratings, of one model."""

from __future__ import annotations

from typing import ClassVar

from selectit_dagster.rating import levels
from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import Floats, OneModelArm


@register("sentence-r")
class SentenceR(OneModelArm):
    """The paper's ablation Sentence-R (table 1): S_base in the place of S_token (equation 4)."""

    title: ClassVar[str] = "the best by one model's plain ratings and their agreement"
    score_means: ClassVar[str] = "sentence-level score of the plain ratings"

    def token_scores(self, p: Floats, variant: levels.Variant) -> Floats:
        """Return S_base of each prompt."""
        return levels.base_rating(p)
