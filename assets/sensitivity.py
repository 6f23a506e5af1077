"""Sensitivity: how much the choice depends on the settings, and whether it is stable."""

import dagster as dg

from assets import groups, ranking
from selectit_dagster.platform import logged, views
from selectit_dagster.platform.resources import Access
from selectit_dagster.platform.steps import run_stage

KEY = dg.AssetKey("sensitivity")


def build(access: Access) -> dg.AssetsDefinition:
    """Return the asset that varies the settings of the ranking."""

    @dg.asset(
        key=access.put(KEY),
        deps=[access.put(ranking.KEY)],
        group_name=access.name(groups.COMPARISON),
        kinds={"python"},
        code_version="1",
        required_resource_keys=access.keys,
    )
    def sensitivity(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Show how much the chosen set depends on α, K, single models and the variant.

        Overlap and rank correlation with the ranking as it is, from the stored scores
        alone, and whether the set is more stable under resampled prompts than chance.
        """
        line, tracker = access.open(context)
        return run_stage(
            context,
            line.sensitivity(),
            tracker,
            describe=views.sensitivity,
            track=logged.track_figures,
        )

    return sensitivity
