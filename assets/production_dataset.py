"""Production dataset: the chosen set of the arm that is re-selected by itself."""

from datetime import timedelta

import dagster as dg

from selectit_dagster.assets.selected_dataset import SelectedDataset
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked
from selectit_dagster.orchestration.stages.stage import Stage

# the re-selection is weekly by default: a day late is worth a look, a week late is stale
_FRESH = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=14), warn_window=timedelta(days=8)
)


class ProductionDataset(SelectedDataset):
    """The set that a training job reads, with the page of the selected set."""

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        arm = pipeline.production_arm
        only = dg.SpecificPartitionsPartitionMapping([arm])
        self.name, self.config, self.partitions, self.loads_model = (
            asset_keys.PRODUCTION,
            None,
            None,
            False,
        )
        self.deps = [dg.AssetDep(access.key(pipeline.selected_asset), partition_mapping=only)]
        self.more = {"freshness_policy": _FRESH}
        self.description = (
            f"The set that the production arm, **{arm}**, chose last: what a "
            "training job reads.\n\nIt is the folder of that arm, never another arm's, and stale "
            "when no re-selection has ended for a week. The schedule and the sensor keep it."
        )

    def stage(self, asked: Asked) -> Stage:
        """Show what the production arm chose."""
        return asked.pipeline.production()
