"""Token-R: one model's token-level score under one rating prompt."""

from __future__ import annotations

from pydantic import Field

from selectit_dagster.selection.arms.arm import register
from selectit_dagster.selection.arms.stored_scores import OneModelArm


@register("token-level", "token-r")
class TokenLevel(OneModelArm):
    """The paper's ablation Token-R (table 1): S_token (equation 3) of one model.

    The released code draws one of the prompts without a seed; here it is always the first.
    """

    title = "the best by one model's token-level score under the first rating prompt"
    score_means = "token-level score under the first rating prompt"
    num_prompts: int | None = Field(1, ge=1, le=1, description="one prompt: the first")
