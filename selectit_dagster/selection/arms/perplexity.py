"""Perplexity of the response: the lowest, the middle or the highest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, register
from selectit_dagster.selection.arms.response_arm import ResponseArm

_MIDDLE = "abs(2 * row_number() OVER (ORDER BY score, record_id) - count(*) OVER () - 1)"


@register("perplexity")
class Perplexity(ResponseArm):
    """exp(L(y given x)), L the mean loss of the response's tokens.

    Marion et al. 2023 (arXiv 2309.04564) find that both ends hurt; the middle is the
    perplexity baseline of Yin and Rush 2024 (arXiv 2410.16208).
    """

    title = "responses of middling perplexity given the instruction"
    keep: Literal["lowest", "middle", "highest"] = Field("middle", description="which are kept")

    @property
    def describes(self) -> str:
        """What is chosen."""
        if self.keep == "middle":
            return self.title
        return f"responses of the {self.keep} perplexity given the instruction"

    def direction(self) -> tuple[str, bool | None]:
        """Order by perplexity, or by how near its place is to the median's."""
        ways = {"lowest": ("score ASC", False), "highest": ("score DESC", True)}
        return ways.get(self.keep, (_MIDDLE, None))

    def scores(self, context: ArmContext) -> tuple[str, str]:
        """Return the perplexity."""
        given = context.work.table(context.passes.losses())
        query = f"SELECT record_id, exp(list_avg(losses)) AS score FROM {given}"
        return query, "perplexity of the response given the instruction"
