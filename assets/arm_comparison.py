"""Comparison of the arms, and the report."""

import dagster as dg

from selectit_dagster.assets import (
    benchmark_evaluations,
    groups,
    lora_checkpoints,
    ranking,
    selective_alpaca,
    sensitivity,
)
from selectit_dagster.experiment import Experiment
from selectit_dagster.orchestration import asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.resources import Access

KEY = dg.AssetKey("arm_comparison")
REPORT_KEY = dg.AssetKey("report")


def build_comparison(access: Access) -> dg.AssetsDefinition:
    """Return the asset that compares the arms."""

    @dg.asset(
        key=access.put(KEY),
        deps=[
            access.put(benchmark_evaluations.KEY),
            access.put(benchmark_evaluations.UNTUNED_KEY),
            access.put(lora_checkpoints.KEY),
        ],
        group_name=access.name(groups.COMPARISON),
        kinds={"python"},
        code_version="1",
        required_resource_keys=access.keys,
    )
    def arm_comparison(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Say with intervals which arm beat which, on the same questions.

        Paired over questions and resampled over training seeds. Where the test could not
        have seen a difference, it says so, with the smallest one that it could have seen.
        """
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.comparison(),
            tracker,
            describe=asset_pages.comparison,
            track=mlflow_logging.track_comparison(pipeline),
        )

    return arm_comparison


def build_report(experiment: Experiment, access: Access) -> dg.AssetsDefinition:
    """Return the asset that writes the report."""
    deps = [ranking.KEY, sensitivity.KEY, selective_alpaca.KEY]
    if experiment.tuning is not None:
        deps.append(KEY)

    @dg.asset(
        key=access.put(REPORT_KEY),
        deps=[access.put(key) for key in deps],
        group_name=access.name(groups.COMPARISON),
        kinds={"python"},
        code_version="1",
        required_resource_keys=access.keys,
    )
    def report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Write the run's report: one HTML file that needs no network, and Markdown.

        What was asked, what became of every record, the scores, the best and the worst
        records, the arms with their intervals, what it cost, and with which versions.
        """
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.report(),
            tracker,
            describe=asset_pages.report,
            track=mlflow_logging.track_report,
        )

    return report
