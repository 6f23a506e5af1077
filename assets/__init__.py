"""The Dagster assets: one thin module per stage of the pipeline, and their checks.

An asset builds a stage, runs it under its MLflow run and returns what its page shows. What
belongs here: keys, groups, dependencies, partitions, checks, texts for people. What must
not: models, files, arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

    from selectit_dagster.orchestration.pipeline import Pipeline
    from selectit_dagster.orchestration.resources import Access


def build_assets(pipeline: Pipeline, access: Access) -> list[dg.AssetsDefinition]:
    """Return the assets that the pipeline's experiment asks for."""
    from selectit_dagster.assets import (
        arm_comparison,
        benchmark_evaluations,
        benchmark_questions,
        curated_dataset,
        lora_checkpoints,
        ranking,
        raw_dataset,
        selective_alpaca,
        sensitivity,
        uncertainty_scores,
    )

    experiment = pipeline.experiment
    found = [raw_dataset.build(experiment, access), curated_dataset.build(experiment, access)]
    if experiment.benchmarks:
        found.append(benchmark_questions.build(access))
    found += [uncertainty_scores.build(model, access) for model in experiment.scoring_models]
    found += [
        ranking.build(experiment, access),
        sensitivity.build(access),
        selective_alpaca.build(pipeline, access),
    ]
    if experiment.tuning is not None:
        found.append(lora_checkpoints.build(pipeline, access))
        found += benchmark_evaluations.build(pipeline, access)
        found.append(arm_comparison.build_comparison(access))
    found.append(arm_comparison.build_report(experiment, access))
    return found
