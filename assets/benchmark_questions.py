"""Benchmark questions: the test questions of every benchmark, for decontamination."""

import dagster as dg

from assets import groups
from selectit_dagster.platform import views
from selectit_dagster.platform.resources import PipelineResource, TrackingResource
from selectit_dagster.platform.steps import run_stage

KEY = dg.AssetKey("benchmark_questions")


def build() -> dg.AssetsDefinition:
    """Return the asset that gathers the benchmarks' questions."""

    @dg.asset(key=KEY, group_name=groups.DATA, kinds={"huggingface", "parquet"}, code_version="1")
    def benchmark_questions(
        context: dg.AssetExecutionContext, pipeline: PipelineResource, tracking: TrackingResource
    ) -> dg.MaterializeResult:
        """Gather the test questions of the experiment's benchmarks.

        The curated dataset depends on this, so no training record that shares a long
        n-gram with a test question is ever selected, and nobody has to remember to check.
        Materialise it after the list of benchmarks has changed.
        """
        line = pipeline.pipeline()
        return run_stage(
            context,
            line.questions(),
            tracking.tracker(line),
            data_file="questions.parquet",
            describe=views.nothing_more,
        )

    return benchmark_questions
