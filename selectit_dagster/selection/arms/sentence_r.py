"""Sentence-R: the sentence level on plain ratings, of one model."""

from __future__ import annotations

from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import OneModelArm


@register("sentence-r")
class SentenceR(OneModelArm):
    """The paper's ablation Sentence-R (table 1): S_base in the place of S_token (equation 4)."""

    title = "the best by one model's plain ratings and their agreement"
    score_means = "sentence-level score of the plain ratings"
    ablated = "sentence-r"
