"""Benchmark questions: the test questions of every benchmark, for decontamination."""

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import log_dataset

PAGE = Page(
    data_file="questions.parquet",
    track=lambda run, stage, manifest: log_dataset(run, stage, "benchmarks"),
)


def build(access: Access) -> dg.AssetsDefinition:
    """Return the asset that gathers the benchmarks' questions."""

    @stage_asset(
        access,
        asset_keys.QUESTIONS,
        PAGE,
        group=asset_keys.DATA,
        kinds={"huggingface", "parquet"},
    )
    def benchmark_questions(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Gather the test questions of the experiment's benchmarks.

        The curated dataset depends on this, so no training record that shares a long
        n-gram with a test question is ever selected, and nobody has to remember to check.
        Materialise it after the list of benchmarks has changed.
        """
        return run_asset(context, access, PAGE, lambda pipeline: pipeline.questions())

    return benchmark_questions
