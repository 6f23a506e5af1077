"""Full: every curated record."""

from __future__ import annotations

from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering, register


@register("full")
class Full(Arm):
    """Every curated record, also those that were not ranked, in the order of the ids."""

    title = "every curated record"
    phrase = "the full dataset"

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by record id."""
        query = f"SELECT record_id, NULL::DOUBLE AS score FROM {context.texts()} ORDER BY record_id"
        means = "none: every curated record is taken"
        return Ordering(query, means, higher_is_better=None)
