"""Benchmark questions: the test questions of every benchmark, for decontamination."""

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Made
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset, log_dataset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun


class BenchmarkQuestions(StageAsset):
    """Gather the test questions of the experiment's benchmarks.

    The curated dataset depends on this, so no training record that shares a long
    n-gram with a test question is ever selected, and nobody has to remember to check.
    Materialise it after the list of benchmarks has changed.
    """

    name = asset_keys.QUESTIONS
    group = asset_keys.DATA
    kinds = asset_keys.DATASET_KINDS
    data_file = "questions.parquet"

    def stage(self, asked: Asked) -> Stage:
        """Gather the questions."""
        return asked.pipeline.questions()

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log the questions as a dataset."""
        log_dataset(run, made, "benchmarks")
