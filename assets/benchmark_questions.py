"""Benchmark questions: the test questions of every benchmark, for decontamination."""

import dagster as dg

from selectit_dagster.assets import groups
from selectit_dagster.orchestration import asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.resources import Access

KEY = dg.AssetKey("benchmark_questions")


def build(access: Access) -> dg.AssetsDefinition:
    """Return the asset that gathers the benchmarks' questions."""

    @dg.asset(
        key=access.put(KEY),
        group_name=access.name(groups.DATA),
        kinds={"huggingface", "parquet"},
        code_version="1",
        required_resource_keys=access.keys,
    )
    def benchmark_questions(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Gather the test questions of the experiment's benchmarks.

        The curated dataset depends on this, so no training record that shares a long
        n-gram with a test question is ever selected, and nobody has to remember to check.
        Materialise it after the list of benchmarks has changed.
        """
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.questions(),
            tracker,
            data_file="questions.parquet",
            describe=asset_pages.nothing_more,
            track=mlflow_logging.track_dataset("benchmarks"),
        )

    return benchmark_questions
