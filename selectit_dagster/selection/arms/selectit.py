"""SelectIT: the best by the model-level score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, Ordering, register
from selectit_dagster.selection.arms.stored_scores import StoredScoreArm


@register("selectit")
class SelectIT(StoredScoreArm):
    """The model-level score S_model (equation 5), or with other parameters than the rating's."""

    title = "the best by SelectIT's model-level score"
    phrase = "SelectIT's {part}"
    score_means = "SelectIT model-level score"

    ablation: Literal["none", "sentence-r", "model-r"] | None = Field(
        None, description="feed the plain rating instead of the token level into the next level"
    )

    def arrange(self, context: ArmContext) -> Ordering:
        """Return the ranking itself, which is stored in order, unless a parameter differs."""
        fields = ("models", "thetas", "num_prompts", "alpha", "variant", "ablation")
        if any(getattr(self, name) is not None for name in fields):
            return super().arrange(context)
        query = f"SELECT record_id, score FROM {context.candidates} ORDER BY rank"
        return Ordering(query, self.score_means)
