"""SelectIT's order with near neighbours skipped."""

from __future__ import annotations

from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, Ordering, register
from selectit_dagster.selection.arms.response_arm import ResponseArm
from selectit_dagster.selection.diversity import (
    SIMILARITY,
    candidate_rows,
    skip_near,
    written_order,
)


@register("diverse")
class Diverse(ResponseArm):
    """Going down the ranking, a record too like one that was taken is skipped.

    The rule of Deita's repr filter (Liu et al. 2024, arXiv 2312.15685) on SelectIT's order,
    on means of the model's own last hidden states. The same as ``kind: selectit`` with
    ``diversity: {method: near}``.
    """

    title = "SelectIT's order with near neighbours skipped"
    phrase = "the diversity {part}"
    needs = ("scores", "model", "embeddings")
    similarity: float = Field(SIMILARITY, gt=-1, le=1, description="cosine of near neighbours")

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by rank without near neighbours, which follow where too few are left."""
        path, embeddings = context.passes.embeddings()
        ids, scores, places = candidate_rows(context, path)
        count = context.count or len(ids)
        taken, notes = skip_near(embeddings[places], count, self.similarity)
        query = written_order(context, [ids[i] for i in taken], scores[taken])
        means = "SelectIT model-level score, near neighbours skipped"
        return Ordering(query, means, notes, higher_is_better=None)
