"""Model-R: plain ratings fused over the models."""

from __future__ import annotations

from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import StoredScoreArm


@register("model-r")
class ModelR(StoredScoreArm):
    """The paper's ablation Model-R (table 1): mean S_base in the place of S_sent (equation 5)."""

    title = "the best by plain ratings, fused over the models"
    score_means = "mean plain rating, weighted over the models"
    ablated = "model-r"
