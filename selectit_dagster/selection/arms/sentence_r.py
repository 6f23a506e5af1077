"""Sentence-R: the sentence level on plain ratings, of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from selectit_dagster.rating import levels
from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import Floats, OneModelArm

if TYPE_CHECKING:
    from selectit_dagster.selection.ranking import RankingRequest


@register("sentence-r")
class SentenceR(OneModelArm):
    """The paper's ablation Sentence-R (table 1): S_base in the place of S_token (equation 4)."""

    title: ClassVar[str] = "the best by one model's plain ratings and their agreement"
    score_means: ClassVar[str] = "sentence-level score of the plain ratings"

    def record_scores(self, p: Floats, request: RankingRequest) -> Floats:
        """Return the sentence level on S_base."""
        return levels.record_score(p, alpha=request.alpha, ablation="sentence-r")
