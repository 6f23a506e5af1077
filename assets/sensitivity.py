"""Sensitivity: how much the choice depends on the settings, and whether it is stable."""

import dagster as dg

from selectit_dagster.assets import groups, ranking
from selectit_dagster.orchestration import asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.resources import Access

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
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.sensitivity(),
            tracker,
            describe=asset_pages.sensitivity,
            track=mlflow_logging.track_figures,
        )

    return sensitivity
