"""Jobs, the re-selection schedule, sensors and automation conditions.

Scoring, ranking and selecting follow real changes of the data; tuning and evaluation cost
too much to start by themselves and stay opt-in.
"""

import json
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.experiment import is_hub_name
from selectit_dagster.platform.pipeline import Pipeline
from selectit_dagster.platform.resources import PipelineResource, TrackingResource

_OWNER = "team:ml-platform"
# the re-selection is weekly by default: a day late is worth a look, a week late is stale
_FRESH = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=14), warn_window=timedelta(days=8)
)
_FOLLOWS = ("curated_dataset", "uncertainty_scores", "ranking", "selective_alpaca")


def follow_changed_data() -> dg.AutomationCondition:
    """Return the condition: run when an upstream asset has a new data version.

    ``eager`` alone fires on every upstream materialisation, also of unchanged data. The
    change must be remembered until the asset was requested, or one that lands on the tick
    after a request is lost.
    """
    changed = dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.data_version_changed()
    ).since(dg.AutomationCondition.newly_requested() | dg.AutomationCondition.initial_evaluation())
    return (
        changed
        & ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
    ).with_label("upstream data changed")


def with_conditions(assets: Iterable[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """Return the assets with their owner, those up to the selection following changed data."""
    condition = follow_changed_data()

    def follow(spec: dg.AssetSpec) -> dg.AssetSpec:
        owned = spec.replace_attributes(owners=[_OWNER])
        if spec.key.path[0] not in _FOLLOWS:
            return owned
        if spec.key.path[0] == "selective_alpaca":
            owned = owned.replace_attributes(freshness_policy=_FRESH)
        return owned.replace_attributes(automation_condition=condition)

    return [asset.map_asset_specs(follow) for asset in assets]


def _selection_assets(pipeline: Pipeline, prefix: str | None) -> dg.AssetSelection:
    names = ["raw_dataset", "curated_dataset", "ranking"]
    if pipeline.experiment.benchmarks:
        names.append("benchmark_questions")
    scores = dg.AssetSelection.key_prefixes(_key("uncertainty_scores", prefix).path)
    return dg.AssetSelection.assets(*(_key(name, prefix) for name in names)) | scores


def _key(name: str, prefix: str | None) -> dg.AssetKey:
    return dg.AssetKey([prefix, name] if prefix else name)


def jobs(pipeline: Pipeline, prefix: str | None = None) -> list[Any]:
    """Return the jobs that a person starts from the page."""
    found = [
        dg.define_asset_job(
            "reselect",
            selection=_selection_assets(pipeline, prefix),
            description=(
                "Read the dataset again, score what is new, rank. The subsets follow by "
                "automation, or materialise `selective_alpaca`."
            ),
        ),
        dg.define_asset_job(
            "write_subsets",
            selection=dg.AssetSelection.assets(_key("selective_alpaca", prefix)),
            description="Write one arm's subset from the stored ranking.",
        ),
    ]
    if pipeline.experiment.tuning is not None:
        found.append(
            dg.define_asset_job(
                "tune_and_evaluate",
                selection=dg.AssetSelection.assets(
                    _key("lora_checkpoints", prefix), _key("benchmark_evaluations", prefix)
                ),
                description="Tune and evaluate one arm with one training seed.",
            )
        )
    return found


def schedules(pipeline: Pipeline) -> list[dg.ScheduleDefinition]:
    """Return the re-selection schedule, as the experiment's cron line says."""
    section = pipeline.experiment.schedule
    return [
        dg.ScheduleDefinition(
            name="reselection",
            job_name="reselect",
            cron_schedule=section.cron,
            execution_timezone=section.timezone,
            description="Re-select from the source, so that new records are rated and ranked.",
        )
    ]


def sensors(pipeline: Pipeline) -> list[dg.SensorDefinition]:
    """Return the sensors: changed source, automation, and closing of MLflow runs."""
    found: list[dg.SensorDefinition] = [
        _mlflow_closer("close_mlflow_after_success", dg.DagsterRunStatus.SUCCESS, "FINISHED"),
        _mlflow_closer("close_mlflow_after_failure", dg.DagsterRunStatus.FAILURE, "FAILED"),
        _mlflow_closer("close_mlflow_after_cancel", dg.DagsterRunStatus.CANCELED, "KILLED"),
        dg.AutomationConditionSensorDefinition(
            "follow_changed_data", target=dg.AssetSelection.all(), minimum_interval_seconds=30
        ),
    ]
    source = pipeline.experiment.dataset.path
    if not is_hub_name(source) or Path(source).exists():
        found.append(_source_sensor(Path(source)))
    return found


def _source_sensor(source: Path) -> dg.SensorDefinition:
    @dg.sensor(
        name="dataset_changed",
        job_name="reselect",
        minimum_interval_seconds=30,
        description=f"Re-select when {source.name} has changed.",
    )
    def dataset_changed(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            stat = source.stat()
        except OSError as error:
            return dg.SkipReason(f"{source} cannot be read: {error.strerror}")
        state = json.dumps([stat.st_size, stat.st_mtime_ns])
        if context.cursor in (None, state):
            return dg.SensorResult(cursor=state, skip_reason=dg.SkipReason("unchanged"))
        return dg.SensorResult(
            cursor=state, run_requests=[dg.RunRequest(run_key=f"dataset-{state}")]
        )

    return dataset_changed


def _mlflow_closer(name: str, status: dg.DagsterRunStatus, outcome: str) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        name=name,
        run_status=status,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=15,
        description="End this Dagster run's MLflow runs, also those that a killed worker left.",
    )
    def close(
        context: dg.RunStatusSensorContext,
        pipeline: PipelineResource,
        tracking: TrackingResource,
    ) -> None:
        line = pipeline.pipeline()
        closed = tracking.tracker(line).close_run(context.dagster_run.run_id, outcome)
        context.log.info("%d MLflow runs ended as %s", closed, outcome)

    return close
