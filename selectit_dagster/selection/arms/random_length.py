"""Random of equal length: the histogram of response lengths is another arm's."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering, arm_of, register


@register("random-length")
class RandomOfEqualLength(Arm):
    """A seeded draw with as many responses of each length band as the compared arm takes.

    That takes the confound of length away: what still parts the two arms is not length. Bands
    hold equally many of the candidates.
    """

    title: ClassVar[str] = "a random draw with the response lengths of another arm"
    phrase: ClassVar[str] = "a random {part} of equal length"
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="draws, a subset each")
    like: Any = Field("selectit", description="the compared arm: its name, or {kind: ...}")
    bands: int = Field(20, ge=1, le=1000, description="bands of response length, in characters")

    @property
    def draws(self) -> tuple[int | None, ...]:
        """One subset per seed."""
        return self.seeds

    @property
    def compared(self) -> Arm:
        """The compared arm."""
        return arm_of({"kind": self.like} if isinstance(self.like, str) else self.like)

    @property
    def needed(self) -> set[str]:
        """What the compared arm takes."""
        return super().needed | self.compared.needed

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by band, so that the first ``count`` have the compared arm's histogram."""
        like = self.compared.arrange(context)
        limit = "" if context.count is None else f"LIMIT {context.count}"
        wanted = f"SELECT record_id FROM ({like.query} {limit})"
        lengths = (
            f"(SELECT record_id, ntile({self.bands}) OVER (ORDER BY length(response), record_id) "
            f"AS band FROM {context.texts()} SEMI JOIN {context.candidates} USING (record_id))"
        )
        query = (
            "SELECT record_id, NULL::DOUBLE AS score FROM (SELECT record_id, band, row_number() "
            f"OVER (PARTITION BY band ORDER BY sha256('{int(context.seed or 0)}:' || record_id), "
            f"record_id) AS place FROM {lengths}) LEFT JOIN (SELECT band, count(*) AS wanted FROM "
            f"{lengths} SEMI JOIN ({wanted}) USING (record_id) GROUP BY band) USING (band) "
            "ORDER BY place > coalesce(wanted, 0), "
            f"sha256('{int(context.seed or 0)}:' || record_id), record_id"
        )
        return Ordering(
            query, "none: a random draw has no score", like.notes, higher_is_better=None
        )
