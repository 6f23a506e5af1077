"""Random of equal length: the histogram of response lengths is another arm's."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from selectit_dagster.experiment.selection_section import arm_of
from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering, register
from selectit_dagster.selection.arms.random import DrawnArm


@register("random-length")
class RandomOfEqualLength(DrawnArm):
    """A seeded draw with as many responses of each length band as the compared arm takes.

    That takes the confound of length away: what still parts the two arms is not length. Bands
    hold equally many of the candidates.
    """

    title = "a random draw with the response lengths of another arm"
    phrase = "a random {part} of equal length"
    like: Any = Field("selectit", description="the compared arm: its name, or {kind: ...}")
    bands: int = Field(20, ge=1, le=1000, description="bands of response length, in characters")

    @property
    def compared(self) -> Arm:
        """The compared arm."""
        found: Arm = arm_of({"kind": self.like} if isinstance(self.like, str) else self.like)
        return found

    @property
    def needed(self) -> set[str]:
        """What the compared arm takes."""
        return super().needed | self.compared.needed

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by band, so that the first ``count`` have the compared arm's histogram."""
        like = self.compared.arrange(context)
        limit = "" if context.count is None else f"LIMIT {context.count}"
        query = (
            f"WITH banded AS (SELECT record_id, ntile({self.bands}) OVER (ORDER BY "
            f"length(response), record_id) AS band FROM {context.texts()} "
            f"SEMI JOIN {context.candidates} USING (record_id)), "
            f"wanted AS (SELECT band, count(*) AS wanted FROM banded SEMI JOIN "
            f"(SELECT record_id FROM ({like.query} {limit})) USING (record_id) GROUP BY band) "
            "SELECT record_id, NULL::DOUBLE AS score FROM (SELECT record_id, band, row_number() "
            f"OVER (PARTITION BY band ORDER BY {self.drawn(context)}) AS place FROM banded) "
            "LEFT JOIN wanted USING (band) "
            f"ORDER BY place > coalesce(wanted, 0), {self.drawn(context)}"
        )
        means = "none: a random draw has no score"
        return Ordering(query, means, like.notes, higher_is_better=None)
