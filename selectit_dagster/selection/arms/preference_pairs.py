"""Preference pairs: kept by the margin between their answers and the chosen one's score."""

from __future__ import annotations

from pydantic import Field

from selectit_dagster.errors import UserError
from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering, register
from selectit_dagster.selection.ranking import RANKING_FILE


@register("preference-pairs")
class PreferencePairs(Arm):
    """S_model of the chosen answer less that of the rejected one, the widest margin first.

    Needs ``rating.pairs: true``. Pairs below the margin, or whose chosen answer scores below
    the floor, are never chosen; fewer pairs than were asked for are then refused.
    """

    title = "the pairs with the widest margin between their answers"
    phrase = "the pairs' {part}"
    needs = ("scores",)
    margin: float = Field(0.0, description="least margin between the answers")
    floor: float | None = Field(None, description="least score of the chosen answer")

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by the margin."""
        if context.ranking is None or context.ranked_with.get("combine") != "margin":
            raise UserError(
                f"arm {self.name} needs both answers rated",
                hint="set rating.pairs: true, and rate the records again",
            )
        wanted = f"score >= {self.margin}"
        if self.floor is not None:
            wanted += f" AND parts[1] >= {self.floor}"
        source = f"{context.work.table(context.ranking / RANKING_FILE)} WHERE rank IS NOT NULL"
        query = f"SELECT record_id, score FROM {source} AND {wanted}"
        found = context.rows(f"({query})")
        if context.count is not None and found < context.count:
            raise UserError(
                f"{context.count:,} pairs are to be chosen, {found:,} have the margin and the "
                "floor",
                hint="choose fewer pairs, or lower the arm's margin or floor",
            )
        means = "score of the chosen answer less that of the rejected one"
        return Ordering(f"{query} ORDER BY score DESC, record_id", means)
