"""Selective Alpaca: the chosen subset of each arm, SelectIT's and those it competes with."""

from collections.abc import Iterable

import dagster as dg
from pydantic import Field

from assets import curated_dataset, groups, ranking
from selectit_dagster.artefacts import Manifest
from selectit_dagster.platform import inspections, views
from selectit_dagster.platform.inspections import Inspection
from selectit_dagster.platform.pipeline import Overrides, Pipeline, Stage
from selectit_dagster.platform.resources import PipelineResource, TrackingResource
from selectit_dagster.platform.steps import run_stage

KEY = dg.AssetKey("selective_alpaca")


class SelectionConfig(dg.Config):
    """What a launchpad run may change."""

    share: float | None = Field(
        None, gt=0, le=1, description="share of the curated records; empty: as in the file"
    )
    count: int | None = Field(None, ge=1, description="number of records instead of a share")
    threshold: float | None = Field(None, description="lowest score instead of a share")


def partitions(pipeline: Pipeline) -> dg.StaticPartitionsDefinition:
    """Return one partition per subset: each arm, and each draw of the random arm."""
    return dg.StaticPartitionsDefinition(list(pipeline.arms))


def build(pipeline: Pipeline) -> dg.AssetsDefinition:
    """Return the asset that writes each arm's subset."""

    @dg.asset(
        key=KEY,
        deps=[curated_dataset.KEY, ranking.KEY],
        partitions_def=partitions(pipeline),
        group_name=groups.SELECTION,
        kinds={"huggingface", "parquet"},
        code_version="1",
        check_specs=[
            dg.AssetCheckSpec(
                "subset_of_the_right_size",
                asset=KEY,
                blocking=True,
                description="the subset has the size that was asked for, without repeats",
            )
        ],
    )
    def selective_alpaca(
        context: dg.AssetExecutionContext,
        config: SelectionConfig,
        pipeline: PipelineResource,
        tracking: TrackingResource,
    ) -> dg.MaterializeResult:
        """Write the dataset that an arm chose, best first, in the format it came in.

        Partition `selectit` is Selective Alpaca itself. The others are what it has to beat:
        random draws, the longest responses, everything. Each folder holds the data as they
        were read, `dataset.parquet`, a dataset card and a manifest; `load_dataset` reads it.
        """
        line = pipeline.pipeline()
        overrides = Overrides(**config.model_dump())
        return run_stage(
            context,
            line.selected(context.partition_key, overrides),
            tracking.tracker(line),
            data_file="dataset.parquet",
            describe=views.selected,
            inspect=_inspect,
            track=views.track_dataset("selected"),
        )

    return selective_alpaca


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield inspections.subset_size(stage, manifest)
