"""SelectIT's order with near neighbours skipped."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, Need, Ordering, register
from selectit_dagster.selection.arms.response_arm import ResponseArm
from selectit_dagster.selection.diversity import SIMILARITY, candidate_rows, skip_near, write_order


@register("diverse")
class Diverse(ResponseArm):
    """Going down the ranking, a record too like one that was taken is skipped.

    The rule of Deita's repr filter (Liu et al. 2024, arXiv 2312.15685) on SelectIT's order,
    on means of the model's own last hidden states. The same as ``kind: selectit`` with
    ``diversity: {method: near}``.
    """

    title: ClassVar[str] = "SelectIT's order with near neighbours skipped"
    phrase: ClassVar[str] = "the diversity {part}"
    needs: ClassVar[tuple[Need, ...]] = ("scores", "model", "embeddings")
    similarity: float = Field(SIMILARITY, gt=-1, le=1, description="cosine of near neighbours")

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by rank without near neighbours, which follow where too few are left."""
        path, embeddings = context.passes.embeddings()
        ids, scores, places = candidate_rows(context, path)
        count = context.count or len(ids)
        taken, notes = skip_near(embeddings[places], count, self.similarity)
        table = write_order(context, [ids[i] for i in taken], scores[taken])
        return Ordering(
            f"SELECT record_id, score FROM {table} ORDER BY place",
            "SelectIT model-level score, near neighbours skipped",
            notes,
            higher_is_better=None,
        )
