"""Perplexity of the response: the lowest, the middle or the highest."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, Ordering, register
from selectit_dagster.selection.arms.response_arm import ResponseArm

_PLACES = (
    "SELECT record_id, score, row_number() OVER (ORDER BY score, record_id) AS place, "
    "count(*) OVER () AS n FROM"
)


@register("perplexity")
class Perplexity(ResponseArm):
    """exp(L(y given x)), L the mean loss of the response's tokens.

    Marion et al. 2023 (arXiv 2309.04564) find that both ends hurt; the middle is the
    perplexity baseline of Yin and Rush 2024 (arXiv 2410.16208).
    """

    title: ClassVar[str] = "responses of middling perplexity given the instruction"
    keep: Literal["lowest", "middle", "highest"] = Field("middle", description="which are kept")

    @property
    def describes(self) -> str:
        """What is chosen."""
        if self.keep == "middle":
            return self.title
        return f"responses of the {self.keep} perplexity given the instruction"

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by perplexity, or by how near it is to the median."""
        given = context.work.table(context.passes.losses())
        query = f"SELECT record_id, exp(list_avg(losses)) AS score FROM {given}"
        order, better = {
            "lowest": ("score ASC", False),
            "highest": ("score DESC", True),
            "middle": ("abs(2 * place - n - 1)", None),
        }[self.keep]
        means = "perplexity of the response given the instruction"
        found = self.by_score(context, query, means, order=order, higher_is_better=better)
        if self.keep != "middle":
            return found
        scored, _, _ = found.query.partition(" ORDER BY ")
        middle = f"SELECT record_id, score FROM ({_PLACES} ({scored})) ORDER BY {order}, record_id"
        return Ordering(middle, means, found.notes, higher_is_better=None)
