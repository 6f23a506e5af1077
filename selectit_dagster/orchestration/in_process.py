"""One run of a job of the code location in this process, for the command line.

It is an ordinary run: on Dagster's timeline, under its job, and re-executable from the page.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG

from selectit_dagster.orchestration.asset_keys import LOCATION, Access
from selectit_dagster.orchestration.automation import job_of
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import make_tracker
from selectit_dagster.orchestration.run import StageFailedError
from selectit_dagster.orchestration.run_cleanup import close_run, failed_steps
from selectit_dagster.orchestration.stages.stage import Stage

# our own message says what failed; Dagster's log of it is for those who look for the fault
_LEVEL = "ERROR" if os.environ.get("SELECTIT_DEBUG") else "CRITICAL"
_CONFIG = {"loggers": {"console": {"config": {"log_level": _LEVEL}}}}
_INTERRUPTED = RunFailureReason.UNEXPECTED_TERMINATION.value
_REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), "__repository__")


def execute(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    pipeline: Pipeline,
    stages: list[Stage],
    launch: str,
) -> tuple[int, bool]:
    """Materialise ``stages`` in one in-process run.

    Returns
    -------
    How many tracking calls failed, and whether there is a run in MLflow where there should be.

    Raises
    ------
    StageFailedError
        With the failed stage's message and remedy.
    """
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    tracker = make_tracker(pipeline)
    before = len(tracker.failures())
    job = definitions.resolve_job_def(Access.of(pipeline.experiment).name(job_of(stages[0])))
    run = _create(instance, job, pipeline, stages, launch)
    success = False
    try:
        success = execute_run(InMemoryJob(job), run, instance).success
    finally:
        # a run that was interrupted between two steps may still hold the place of a model
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended = instance.get_run_by_id(run.run_id)
        if ended is not None and ended.is_finished:
            close_run(instance, ended, tracker)
        else:
            tracker.close_run(run.run_id, "KILLED")
    if not success:
        raise _failure(instance, run)
    return len(tracker.failures()) - before, not tracker.enabled or tracker.knows(run.run_id)


def _create(
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    pipeline: Pipeline,
    stages: list[Stage],
    launch: str,
) -> dg.DagsterRun:
    """Create the run of the stages' job, as the page would for the same choice of assets."""
    access = Access.of(pipeline.experiment)
    keys = {access.stage_key(stage) for stage in stages}
    names = list(dict.fromkeys(stage.asset for stage in (stages[0], stages[-1])))
    partition = next((stage.partition for stage in stages if stage.partition), None)
    what = " · ".join(filter(None, (partition, " to ".join(names))))
    tags = {**access.tags, "selectit/launch": launch, "selectit/what": what}
    return instance.create_run_for_job(
        job.get_subset(asset_selection=keys),
        run_config=_CONFIG,
        tags={**tags, "dagster/partition": partition} if partition else tags,
        asset_selection=keys,
        remote_job_origin=_REPOSITORY.get_job_origin(job.name),
    )


def _failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Exception:
    """Return the first failed step as one message with its remedy.

    Raises
    ------
    KeyboardInterrupt
        When nothing failed but the run was interrupted: Dagster reports Ctrl-C as a failure.
    """
    for name, data in failed_steps(instance, run):
        if data.user_failure_data is not None:
            message, _, hint = (data.user_failure_data.description or "").partition("\n  hint: ")
            return StageFailedError(f"{name}: {message}", hint=hint, permanent=True)
        error: Any = data.error.cause or data.error
        if "Interrupted" in f"{error.cls_name} {error.message}":
            raise KeyboardInterrupt
        return StageFailedError(
            f"{name} failed: {error.message.strip()}",
            hint="start again to go on where it stopped; SELECTIT_DEBUG=1 shows where it failed",
            permanent=False,
        )
    ended = instance.get_run_by_id(run.run_id)
    if ended is not None and ended.tags.get(RUN_FAILURE_REASON_TAG) == _INTERRUPTED:
        raise KeyboardInterrupt
    return RuntimeError(f"{run.tags['selectit/what']} failed, and none of its steps says why")
