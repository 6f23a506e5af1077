"""The Dagster assets: one thin module per stage of the pipeline, with its checks and its page.

An asset names the stage that makes it; what every asset does around its stage is in
``orchestration/stage_asset.py``. What belongs here: dependencies, partitions, checks, texts for
people, what is logged of the asset. What must not: models, arithmetic, and what only the engines
may write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

    from selectit_dagster.orchestration.asset_keys import Access
    from selectit_dagster.orchestration.pipeline import Pipeline


def build_assets(pipeline: Pipeline, access: Access) -> list[dg.AssetsDefinition]:
    """Return the assets that the pipeline's experiment asks for."""
    from selectit_dagster.assets.arm_comparison import ArmComparison
    from selectit_dagster.assets.benchmark_evaluations import (
        BenchmarkEvaluations,
        UntunedEvaluation,
    )
    from selectit_dagster.assets.benchmark_questions import BenchmarkQuestions
    from selectit_dagster.assets.curated_dataset import CuratedDataset
    from selectit_dagster.assets.lora_checkpoints import LoraCheckpoints
    from selectit_dagster.assets.production_dataset import ProductionDataset
    from selectit_dagster.assets.ranking import Ranking
    from selectit_dagster.assets.raw_dataset import RawDataset
    from selectit_dagster.assets.report import Report
    from selectit_dagster.assets.selected_dataset import SelectedDataset
    from selectit_dagster.assets.sensitivity import Sensitivity
    from selectit_dagster.assets.uncertainty_scores import UncertaintyScores

    experiment = pipeline.experiment
    kinds = [RawDataset, CuratedDataset, Ranking, Sensitivity, SelectedDataset, ProductionDataset]
    if experiment.benchmarks:
        kinds.append(BenchmarkQuestions)
    if experiment.tuning is not None:
        kinds += [LoraCheckpoints, BenchmarkEvaluations, UntunedEvaluation, ArmComparison]
    found = [kind(pipeline, access) for kind in (*kinds, Report)]
    found += [UncertaintyScores(model, pipeline, access) for model in experiment.scoring_models]
    return [asset.build() for asset in found]
