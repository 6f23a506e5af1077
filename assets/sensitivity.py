"""Sensitivity: how much the choice depends on the settings, and whether it is stable."""

import dagster as dg

from assets import groups, ranking
from selectit_dagster.platform import views
from selectit_dagster.platform.resources import PipelineResource, TrackingResource
from selectit_dagster.platform.steps import run_stage

KEY = dg.AssetKey("sensitivity")


def build() -> dg.AssetsDefinition:
    """Return the asset that varies the settings of the ranking."""

    @dg.asset(
        key=KEY,
        deps=[ranking.KEY],
        group_name=groups.COMPARISON,
        kinds={"python"},
        code_version="1",
    )
    def sensitivity(
        context: dg.AssetExecutionContext, pipeline: PipelineResource, tracking: TrackingResource
    ) -> dg.MaterializeResult:
        """Show how much the chosen set depends on α, K, single models and the variant.

        Overlap and rank correlation with the ranking as it is, from the stored scores
        alone, and whether the set is more stable under resampled prompts than chance.
        """
        line = pipeline.pipeline()
        return run_stage(
            context,
            line.sensitivity(),
            tracking.tracker(line),
            describe=views.sensitivity,
            track=views.track_figures,
        )

    return sensitivity
