"""Random: a seeded draw, uniform."""

from __future__ import annotations

from pydantic import Field

from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering, register


class DrawnArm(Arm):
    """Base of the arms that are drawn by the SHA-256 of ``<seed>:<record id>``."""

    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="draws, a subset each")

    @property
    def draws(self) -> tuple[int | None, ...]:
        """One subset per seed."""
        return self.seeds

    def drawn(self, context: ArmContext) -> str:
        """Return the order of the draw as SQL: no file order counts."""
        return f"sha256('{int(context.seed or 0)}:' || record_id), record_id"


@register("random")
class Random(DrawnArm):
    """The records with the smallest SHA-256 of ``<seed>:<record id>``."""

    title = "a seeded random draw"
    phrase = "a random {part}"

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by the hash of seed and record id."""
        query = f"SELECT record_id, NULL::DOUBLE AS score FROM {context.candidates} ORDER BY "
        means = "none: a random draw has no score"
        return Ordering(query + self.drawn(context), means, higher_is_better=None)
