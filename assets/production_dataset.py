"""Production dataset: the chosen set of the arm that is re-selected by itself."""

from datetime import timedelta

import dagster as dg

from selectit_dagster.assets.selected_dataset import page_of
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_runner import run_asset, stage_asset
from selectit_dagster.orchestration.pipeline import Pipeline

# the re-selection is weekly by default: a day late is worth a look, a week late is stale
_FRESH = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=14), warn_window=timedelta(days=8)
)


def build(pipeline: Pipeline, access: Access) -> dg.AssetsDefinition:
    """Return the asset that shows the production arm's set."""
    page = page_of(pipeline, access)
    arm = dg.SpecificPartitionsPartitionMapping([pipeline.production_arm])

    @stage_asset(
        access,
        asset_keys.PRODUCTION,
        page,
        deps=[dg.AssetDep(access.key(pipeline.selected_asset), partition_mapping=arm)],
        group=asset_keys.SELECTION,
        kinds={"huggingface", "parquet"},
        freshness_policy=_FRESH,
        description=(
            f"The set that the production arm, **{pipeline.production_arm}**, chose last: what a "
            "training job reads.\n\nIt is the folder of that arm, never another arm's, and stale "
            "when no re-selection has ended for a week. The schedule and the sensor keep it."
        ),
    )
    def production_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return run_asset(context, access, page, lambda pipeline: pipeline.production())

    return production_dataset
