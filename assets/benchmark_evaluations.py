"""Benchmark evaluations: every checkpoint, and the untuned base model, on every benchmark."""

from collections.abc import Iterable

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets import benchmark_questions, groups, lora_checkpoints
from selectit_dagster.orchestration import asset_checks, asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_checks import Inspection
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import Access
from selectit_dagster.orchestration.stages.stage import Stage

KEY = dg.AssetKey("benchmark_evaluations")
UNTUNED_KEY = dg.AssetKey("untuned_evaluation")
_EVERY_QUESTION = "every question has one finite score"


def build(pipeline: Pipeline, access: Access) -> list[dg.AssetsDefinition]:
    """Return the evaluation of the checkpoints and that of the untuned base model."""
    line_of = pipeline

    @dg.asset(
        key=access.put(KEY),
        deps=[access.put(lora_checkpoints.KEY), access.put(benchmark_questions.KEY)],
        partitions_def=lora_checkpoints.partitions(line_of),
        group_name=access.name(groups.EVALUATION),
        kinds={"pytorch", "huggingface"},
        code_version="1",
        required_resource_keys=access.keys,
        pool=groups.MODEL_POOL,
        check_specs=[_spec(access.put(KEY))],
    )
    def benchmark_evaluations(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Evaluate one checkpoint on the experiment's benchmarks.

        Every question's prompt, output, extracted answer and score is stored, so that any
        figure can be traced to the answers behind it. Materialise a single partition to
        evaluate one arm and seed again.
        """
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.evaluation(pipeline.units[context.partition_key]),
            tracker,
            describe=asset_pages.evaluation,
            inspect=_inspect,
            track=mlflow_logging.track_evaluation,
        )

    @dg.asset(
        key=access.put(UNTUNED_KEY),
        deps=[access.put(benchmark_questions.KEY)],
        group_name=access.name(groups.EVALUATION),
        kinds={"pytorch", "huggingface"},
        code_version="1",
        required_resource_keys=access.keys,
        pool=groups.MODEL_POOL,
        check_specs=[_spec(access.put(UNTUNED_KEY))],
    )
    def untuned_evaluation(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Evaluate the base model before any tuning, to show what tuning adds at all."""
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.evaluation(None),
            tracker,
            describe=asset_pages.evaluation,
            inspect=_inspect,
            track=mlflow_logging.track_evaluation,
        )

    return [benchmark_evaluations, untuned_evaluation]


def _spec(key: dg.AssetKey) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        "every_question_scored", asset=key, blocking=True, description=_EVERY_QUESTION
    )


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield asset_checks.every_question_scored(stage, manifest)
