"""Random: a seeded draw, uniform."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering, register


@register("random")
class Random(Arm):
    """The records with the smallest SHA-256 of ``<seed>:<record id>``: no file order counts."""

    title: ClassVar[str] = "a seeded random draw"
    phrase: ClassVar[str] = "a random {part}"
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="draws, a subset each")

    @property
    def draws(self) -> tuple[int | None, ...]:
        """One subset per seed."""
        return self.seeds

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by the hash of seed and record id."""
        query = (
            f"SELECT record_id, NULL::DOUBLE AS score FROM {context.candidates} "
            f"ORDER BY sha256('{int(context.seed or 0)}:' || record_id), record_id"
        )
        means = "none: a random draw has no score"
        return Ordering(query, means, higher_is_better=None)
