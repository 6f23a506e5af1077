"""LoRA checkpoints: the base model tuned on each arm, once per training seed."""

from collections.abc import Iterable

import dagster as dg
from pydantic import Field

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets import groups, selective_alpaca
from selectit_dagster.orchestration import asset_checks, asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_checks import Inspection
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import Access
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.orchestration.stages.stage import Stage

KEY = dg.AssetKey("lora_checkpoints")


class TuningConfig(dg.Config):
    """Settings that stand in for the experiment file's in this run."""

    seed: int | None = Field(
        None,
        ge=0,
        le=2**31 - 1,
        description="another training seed than the partition's; its checkpoint is replaced",
    )


def partitions(pipeline: Pipeline) -> dg.StaticPartitionsDefinition:
    """Return one partition per arm and training seed."""
    return dg.StaticPartitionsDefinition(list(pipeline.units))


def arm_mapping(pipeline: Pipeline) -> dg.StaticPartitionMapping:
    """Map each subset to the checkpoints that are tuned on it."""
    table: dict[str, list[str]] = {}
    for unit in pipeline.units.values():
        table.setdefault(unit.arm, []).append(unit.key)
    return dg.StaticPartitionMapping(table)


def build(pipeline: Pipeline, access: Access) -> dg.AssetsDefinition:
    """Return the asset that tunes the base model."""
    base = pipeline.tuning.base_model.path
    line_of = pipeline

    @dg.asset(
        key=access.put(KEY),
        deps=[
            dg.AssetDep(access.put(selective_alpaca.KEY), partition_mapping=arm_mapping(line_of))
        ],
        partitions_def=partitions(line_of),
        group_name=access.name(groups.TUNING),
        kinds={"pytorch", "huggingface"},
        code_version="1",
        required_resource_keys=access.keys,
        pool=groups.MODEL_POOL,
        metadata={"base_model": base},
        check_specs=[
            dg.AssetCheckSpec(
                "loads_and_answers",
                asset=access.put(KEY),
                blocking=True,
                description="the checkpoint loads over its base model and answers a prompt",
            )
        ],
    )
    def lora_checkpoints(
        context: dg.AssetExecutionContext, config: TuningConfig
    ) -> dg.MaterializeResult:
        """Tune the base model on one arm's subset with one training seed.

        The loss counts the response only; five records' trained text is shown below. An
        interrupted run resumes from its last resume point. Materialise a single partition
        to repeat one arm and seed.
        """
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.checkpoint(pipeline.units[context.partition_key], Overrides(seed=config.seed)),
            tracker,
            describe=asset_pages.checkpoint,
            inspect=lambda stage, manifest: _inspect(pipeline, stage, manifest),
            track=mlflow_logging.track_checkpoint,
        )

    return lora_checkpoints


def _inspect(pipeline: Pipeline, stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield asset_checks.checkpoint_answers(pipeline.tuning.base_model, stage, manifest)
