"""One Dagster run in this process, for the command line, with its MLflow parent closed."""

from __future__ import annotations

import os
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from selectit_dagster.assets.uncertainty_scores import asset_name
from selectit_dagster.definitions import build_defs
from selectit_dagster.orchestration import run_monitoring
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import make_tracker
from selectit_dagster.orchestration.run import StageFailedError
from selectit_dagster.orchestration.run_cleanup import close_run
from selectit_dagster.orchestration.stages.stage import Stage

if TYPE_CHECKING:
    from dagster import DagsterInstance

_DEFINITIONS: dict[tuple[str, str], dg.Definitions] = {}
# our own message says what failed; Dagster's log of it is for those who look for the fault
_LEVEL = "ERROR" if os.environ.get("SELECTIT_DEBUG") else "CRITICAL"
_QUIET = {"loggers": {"console": {"config": {"log_level": _LEVEL}}}}


def execute(
    instance: DagsterInstance,
    experiment_file: Path,
    pipeline: Pipeline,
    stages: list[Stage],
    launch: str,
) -> int:
    """Materialise ``stages`` in one in-process run and return how many tracking calls failed.

    Raises
    ------
    StageFailedError
        With the failed stage's message and remedy.
    """
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    definitions = _definitions(experiment_file, pipeline)
    keys = [dg.AssetKey([asset_name(p) for p in stage.asset.split("/")]) for stage in stages]
    partition = next((stage.partition for stage in stages if stage.partition), None)
    job = definitions.resolve_implicit_global_asset_job_def()
    tracker = make_tracker(pipeline)
    before = len(tracker.failures())
    run_id = str(uuid.uuid4())
    result: Any = None
    status = "KILLED"
    try:
        with run_monitoring.working(pipeline.home.root, run_id):
            result = job.execute_in_process(
                run_id=run_id,
                instance=instance,
                asset_selection=keys,
                partition_key=partition,
                run_config=_QUIET,
                raise_on_error=False,
                tags={"selectit/launch": launch, "selectit/what": _what(stages)},
            )
        status = "FINISHED" if result.success else "FAILED"
    finally:
        run_monitoring.forget(pipeline.home.root, run_id)
        run = instance.get_run_by_id(run_id)
        if run is not None and run.is_finished:
            close_run(instance, run, tracker)
        elif run is not None:
            tracker.close_run(run.run_id, status)
    if not result.success:
        raise _failure(result, stages)
    return len(tracker.failures()) - before


def _definitions(experiment_file: Path, pipeline: Pipeline) -> dg.Definitions:
    """Return the definitions, built once per process."""
    key = (str(Path(experiment_file).resolve()), str(pipeline.home.root))
    if key not in _DEFINITIONS:
        _DEFINITIONS[key] = build_defs(experiment_file=experiment_file, home=pipeline.home.root)
    return _DEFINITIONS[key]


def _what(stages: list[Stage]) -> str:
    if len(stages) == 1:
        asset, partition = stages[0].asset, stages[0].partition
        return f"{partition} · {asset}" if partition else asset
    names = [stage.asset for stage in stages]
    partition = next((f"{s.partition} · " for s in stages if s.partition), "")
    return f"{partition}{names[0]} to {names[-1]}"


def _failure(result: Any, stages: list[Stage]) -> StageFailedError:  # noqa: ANN401 - Dagster's result
    """Return the first failed step as one message with its remedy.

    Raises
    ------
    KeyboardInterrupt
        When the step did not fail but was interrupted: Dagster reports Ctrl-C as a failure.
    RuntimeError
        When no step failed.
    """
    for event in result.all_events:
        if event.event_type_value != "STEP_FAILURE":
            continue
        data = event.step_failure_data
        permanent = data.user_failure_data is not None
        name = event.step_key.replace("__", "/")
        if permanent:
            description = data.user_failure_data.description or ""
            message, _, hint = description.partition("\n  hint: ")
            return StageFailedError(f"{name}: {message}", hint=hint, permanent=True)
        error = data.error.cause or data.error
        if "Interrupted" in f"{error.cls_name} {error.message}":
            raise KeyboardInterrupt
        return StageFailedError(
            f"{name} failed: {error.message.strip()}",
            hint="start again to go on where it stopped; SELECTIT_DEBUG=1 shows where it failed",
            permanent=False,
        )
    raise RuntimeError(f"{_what(stages)} failed, and none of its steps says why")
