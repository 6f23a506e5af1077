"""Selective Alpaca: the chosen subset of each arm, SelectIT's and those it competes with."""

from collections.abc import Iterable

import dagster as dg
from pydantic import Field, model_validator

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets import curated_dataset, groups, ranking
from selectit_dagster.orchestration import asset_checks, asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_checks import Inspection
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import Access
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.selection.subset import needs_model

KEY = dg.AssetKey("selective_alpaca")


class SelectionConfig(dg.Config):
    """Settings that stand in for the experiment file's in this run."""

    share: float | None = Field(
        None, gt=0, le=1, description="share of the curated records: above 0, at most 1"
    )
    count: int | None = Field(None, ge=1, description="number of records instead of a share")
    threshold: float | None = Field(None, description="lowest score instead of a share")
    seed: int | None = Field(
        None, ge=0, le=2**31 - 1, description="another draw; only for a random arm"
    )
    model: str | None = Field(
        None,
        description="scoring model of this arm; only for ifd, perplexity, diverse, token-level "
        "and sentence-level",
    )

    @model_validator(mode="after")
    def _one_size(self) -> "SelectionConfig":
        sizes = (self.share, self.count, self.threshold)
        if sum(size is not None for size in sizes) > 1:
            raise ValueError("give one of share, count and threshold, not several")
        return self

    def overrides(self) -> Overrides:
        """Return the values that were given in the launchpad."""
        return Overrides(
            share=self.share,
            count=self.count,
            threshold=self.threshold,
            seed=self.seed,
            model=self.model,
        )


def partitions(pipeline: Pipeline) -> dg.StaticPartitionsDefinition:
    """Return one partition per subset: each arm, and each draw of the random arm."""
    return dg.StaticPartitionsDefinition(list(pipeline.arms))


def runs_a_model(pipeline: Pipeline) -> bool:
    """Tell whether any arm loads a model while it selects."""
    return any(needs_model(arm.kind) for arm in pipeline.experiment.selection.arms)


def build(pipeline: Pipeline, access: Access) -> dg.AssetsDefinition:
    """Return the asset that writes each arm's subset."""

    @dg.asset(
        key=access.put(KEY),
        deps=[access.put(curated_dataset.KEY), access.put(ranking.KEY)],
        partitions_def=partitions(pipeline),
        group_name=access.name(groups.SELECTION),
        kinds={"huggingface", "parquet"},
        code_version="1",
        required_resource_keys=access.keys,
        pool=groups.MODEL_POOL if runs_a_model(pipeline) else None,
        check_specs=[
            dg.AssetCheckSpec(
                "subset_of_the_right_size",
                asset=access.put(KEY),
                blocking=True,
                description="the subset has the size that was asked for, without repeats",
            )
        ],
    )
    def selective_alpaca(
        context: dg.AssetExecutionContext, config: SelectionConfig
    ) -> dg.MaterializeResult:
        """Write the dataset that an arm chose, best first, in the format it came in.

        Partition `selectit` is Selective Alpaca itself. The others are what it has to beat:
        random draws, the longest responses, everything. Each folder holds the data as they
        were read, `dataset.parquet`, a dataset card and a manifest; `load_dataset` reads it.
        """
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            lambda: pipeline.selected(context.partition_key, config.overrides()),
            tracker,
            data_file="dataset.parquet",
            describe=asset_pages.selected,
            inspect=_inspect,
            track=mlflow_logging.track_dataset("selected"),
        )

    return selective_alpaca


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield asset_checks.subset_size(stage, manifest)
