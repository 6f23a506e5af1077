"""Model-R: plain ratings fused over the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from selectit_dagster.rating import levels
from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import Floats, StoredScoreArm

if TYPE_CHECKING:
    from selectit_dagster.selection.ranking import RankingRequest


@register("model-r")
class ModelR(StoredScoreArm):
    """The paper's ablation Model-R (table 1): mean S_base in the place of S_sent (equation 5)."""

    title: ClassVar[str] = "the best by plain ratings, fused over the models"
    score_means: ClassVar[str] = "mean plain rating, weighted over the models"

    def record_scores(self, p: Floats, request: RankingRequest) -> Floats:
        """Return the mean S_base over the prompts."""
        return levels.record_score(p, ablation="model-r")
