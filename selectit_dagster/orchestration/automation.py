"""The jobs of an experiment and its re-selection schedule."""

from __future__ import annotations

from typing import Any

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage


def jobs(pipeline: Pipeline, access: Access) -> dict[str, Any]:
    """Return the jobs that a person, a trigger or ``selectit run`` starts, by their plain names."""
    scores = [asset_keys.scores_name(m.name) for m in pipeline.experiment.scoring_models]
    data = [asset_keys.RAW, asset_keys.CURATED]
    if pipeline.experiment.benchmarks:
        data.insert(1, asset_keys.QUESTIONS)
    rated = [*data, *scores, asset_keys.RANKING]
    found = {
        "reselect": (
            [*rated, pipeline.selected_asset, asset_keys.PRODUCTION],
            "From the raw dataset to one arm's selected set: read the source, rate what is "
            "new, rank, select, and say what entered, what left and why.",
        ),
        "rate": (
            [*rated, asset_keys.SENSITIVITY],
            "From the raw dataset to the ranking, and how much it depends on the settings.",
        ),
        "write_subsets": (
            [pipeline.selected_asset],
            "Write one arm's subset from the stored ranking.",
        ),
    }
    closing = [asset_keys.PRODUCTION, asset_keys.REPORT]
    if pipeline.experiment.tuning is not None:
        closing += [asset_keys.UNTUNED, asset_keys.COMPARISON]
        found["tune_and_evaluate"] = (
            [asset_keys.CHECKPOINTS, asset_keys.EVALUATIONS],
            "Tune and evaluate one arm with one training seed.",
        )
    found["compare_and_report"] = (
        closing,
        "Say what was chosen, compare the arms where they were tuned, and write the report.",
    )
    return {name: _job(access, name, *job) for name, job in found.items()}


def job_of(stage: Stage) -> str:
    """Return the plain name of the job that ``selectit run`` makes a stage with."""
    if stage.asset in (asset_keys.CHECKPOINTS, asset_keys.EVALUATIONS):
        return "tune_and_evaluate"
    if stage.partition is not None:
        return "write_subsets"
    closing = (asset_keys.PRODUCTION, asset_keys.UNTUNED, asset_keys.COMPARISON, asset_keys.REPORT)
    return "compare_and_report" if stage.asset in closing else "rate"


def _job(access: Access, name: str, assets: list[str], description: str) -> Any:  # noqa: ANN401
    return dg.define_asset_job(
        access.name(name),
        selection=dg.AssetSelection.assets(*map(access.key, assets)),
        description=description,
        run_tags=access.tags,
        tags=access.tags,
    )


def schedules(pipeline: Pipeline, access: Access, job: Any) -> list[dg.ScheduleDefinition]:  # noqa: ANN401
    """Return the re-selection schedule, as the experiment's cron line says."""
    section = pipeline.experiment.schedule

    @dg.schedule(
        name=access.name("reselection"),
        job=job,
        cron_schedule=section.cron,
        execution_timezone=section.timezone,
        description="Re-select from the source, so that new records are rated and ranked.",
    )
    def reselection(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        waiting = dg.RunsFilter(job_name=job.name, statuses=[dg.DagsterRunStatus.QUEUED])
        if context.instance.get_runs(waiting, limit=1):
            return dg.SkipReason("one is waiting already, and will read what is there then")
        return dg.RunRequest(partition_key=pipeline.production_arm)

    return [reselection]
