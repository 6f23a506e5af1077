"""The Dagster assets: one thin module per stage of the pipeline, with its checks and its page.

An asset builds a stage, runs it under its MLflow run and returns what its page shows. What
belongs here: dependencies, partitions, checks, texts for people, what is logged of the asset.
What must not: models, arithmetic, and what only the engines may write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

    from selectit_dagster.orchestration.asset_keys import Access
    from selectit_dagster.orchestration.pipeline import Pipeline


def build_assets(pipeline: Pipeline, access: Access) -> list[dg.AssetsDefinition]:
    """Return the assets that the pipeline's experiment asks for."""
    from selectit_dagster.assets import (
        arm_comparison,
        benchmark_evaluations,
        benchmark_questions,
        curated_dataset,
        lora_checkpoints,
        production_dataset,
        ranking,
        raw_dataset,
        report,
        selected_dataset,
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
        selected_dataset.build(pipeline, access),
        production_dataset.build(pipeline, access),
    ]
    if experiment.tuning is not None:
        found.append(lora_checkpoints.build(pipeline, access))
        found += benchmark_evaluations.build(pipeline, access)
        found.append(arm_comparison.build(pipeline, access))
    return [*found, report.build(pipeline, access)]
