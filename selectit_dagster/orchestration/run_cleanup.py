"""After a Dagster run: its MLflow runs are ended, and a failed one says what to do next.

A killed worker can do neither itself, so this belongs to the daemon's run-status sensors, and
to ``selectit run`` for its own runs and for those that a killed one left behind.
"""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from selectit_dagster.errors import redacted
from selectit_dagster.orchestration.asset_keys import EXPERIMENT_TAG, Access
from selectit_dagster.orchestration.resources import ExperimentResource
from selectit_dagster.orchestration.run_monitoring import is_alive, lock_file

if TYPE_CHECKING:
    from selectit_dagster.orchestration.tracking import Tracker

LOGGER = logging.getLogger("selectit_dagster")
REMEDY_TAG = "selectit/next"
_MLFLOW_STATUS = {
    dg.DagsterRunStatus.SUCCESS: "FINISHED",
    dg.DagsterRunStatus.FAILURE: "FAILED",
    dg.DagsterRunStatus.CANCELED: "KILLED",
}
_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_ENDS = {"success": "SUCCESS", "failure": "FAILURE", "cancel": "CANCELED"}


def closing_sensors(
    access: Access, resource: ExperimentResource, ours: frozenset[dg.AssetKey]
) -> list[dg.SensorDefinition]:
    """Return the sensors that end a run's MLflow runs; they are on from the start.

    ``ours`` are the keys of this component's assets.
    """

    def close(context: dg.RunStatusSensorContext) -> None:
        _, tracker = resource.open()
        run = context.dagster_run
        closed = close_run(context.instance, run, tracker, ours, access.experiment)
        context.log.info("%d MLflow runs ended", closed)
        close_left_over(context.instance, tracker, access.experiment)

    return [
        dg.run_status_sensor(
            name=access.name(f"close_mlflow_after_{end}"),
            run_status=dg.DagsterRunStatus[status],
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=15,
            description="End this Dagster run's MLflow runs, also those that a killed worker left, "
            "and say what to do next where it failed.",
        )(close)
        for end, status in _ENDS.items()
    ]


def close_run(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    tracker: Tracker,
    ours: frozenset[dg.AssetKey] = frozenset(),
    experiment: str | None = None,
) -> int:
    """End the MLflow runs of a finished Dagster run and return how many were still going on.

    A run of another experiment, or of other assets in the same project, is left alone: ``ours``
    are the keys of this one's.
    """
    # a worker that was killed at once has no note yet, but `selectit run` leaves a tag, and
    # wrong config ends a run of our assets before it has a note
    known = tracker.knows(run.run_id) or "selectit/launch" in run.tags
    if _is_of_another(run, experiment) or not (known or _makes(instance, run, ours)):
        return 0
    closed = tracker.close_run(run.run_id, _MLFLOW_STATUS[run.status]) or 0
    lock_file(tracker.home, run.run_id).unlink(missing_ok=True)
    if run.status is dg.DagsterRunStatus.FAILURE and REMEDY_TAG not in run.tags:
        text = what_to_do(instance, run)
        instance.report_engine_event(f"What to do next. {text}", run)
        instance.add_run_tags(run.run_id, {REMEDY_TAG: text[:1000]})
        tracker.describe_parent(run.run_id, "remedy", f"**What to do next.** {text}")
        alert(run, text, f"{tracker.dagster_url}/runs/{run.run_id}")
    return closed


def alert(run: dg.DagsterRun, text: str, url: str) -> None:
    """Tell the webhook that $SELECTIT_ALERT_WEBHOOK names of a failed run; it may be away."""
    address = os.environ.get("SELECTIT_ALERT_WEBHOOK", "")
    if not address.startswith(("http://", "https://")):
        return
    body = {
        "text": f"{run.job_name} failed. {redacted(text)} {url}",
        "run": run.run_id,
        "job": run.job_name,
        "url": url,
    }
    request = urllib.request.Request(  # noqa: S310 - http or https alone, as its owner says
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 - likewise
    except (OSError, ValueError) as error:
        LOGGER.warning("the alert could not be sent: %s", redacted(str(error)))


def _is_of_another(run: dg.DagsterRun, experiment: str | None) -> bool:
    tag = run.tags.get(EXPERIMENT_TAG)
    return None not in (tag, experiment) and tag != experiment


def _makes(instance: dg.DagsterInstance, run: dg.DagsterRun, ours: frozenset[dg.AssetKey]) -> bool:
    """Tell whether a run was to make one of our assets."""
    planned = instance.all_logs(
        run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    )
    return any(entry.get_dagster_event().asset_key in ours for entry in planned)


def what_to_do(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Return what failed in a run and what to do about it, for a person."""
    found = []
    for name, data in failed_steps(instance, run):
        if data.user_failure_data is not None and data.user_failure_data.description:
            message, _, hint = data.user_failure_data.description.partition("\n  hint: ")
            found.append(f"{name}: {message}." + (f" Remedy: {hint}." if hint else ""))
        elif data.error is not None:
            error = data.error.cause or data.error
            found.append(f"{name} failed: {error.message.strip()[:1000]}")
    if not found:
        found = [
            "The process of this run ended without a word: it was killed, or the machine ran out "
            "of memory. Look at the system's log; where it was memory, lower max_batch_tokens or "
            "micro_batch_size, or use a larger machine."
        ]
    return " ".join(
        [
            *found,
            "What is complete is kept: choose *Re-execute from failure* on this page, or start "
            "`selectit run` again; either goes on where it stopped.",
        ]
    )


def failed_steps(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[tuple[str, Any]]:
    """Yield each failed step's asset, without its prefix, with Dagster's data on the failure."""
    prefix = run.tags.get(EXPERIMENT_TAG, "").replace("/", "__")
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.get_dagster_event()
        name = (event.step_key or "").removeprefix(f"{prefix}__")
        yield name.replace("__", "/"), event.step_failure_data


def fail_abandoned(
    instance: dg.DagsterInstance, tracker: Tracker, experiment: str | None = None
) -> list[str]:
    """Mark an experiment's runs whose process is gone as failed, close them, return their ids.

    The daemon does the same for its own runs; without one, nobody else would.
    """
    found = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        record = instance.get_run_record_by_id(run.run_id)
        if _is_of_another(run, experiment):
            continue
        if not is_alive(tracker.home, run.run_id, record.start_time if record else None):
            instance.report_run_failed(run, "The process of this run is gone.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            failed = instance.get_run_by_id(run.run_id)
            close_run(instance, failed or run, tracker, experiment=experiment)
            found.append(run.run_id)
    close_left_over(instance, tracker, experiment)
    for run_id in tracker.unclosed():
        if instance.get_run_by_id(run_id) is None:
            tracker.close_run(run_id, "KILLED")
    return found


def close_left_over(instance: dg.DagsterInstance, tracker: Tracker, experiment: str | None) -> None:
    """End the MLflow runs of ended Dagster runs at whose end their process, or MLflow, was away."""
    for run_id in tracker.unclosed():
        ended = instance.get_run_by_id(run_id)
        if ended is not None and ended.is_finished:
            close_run(instance, ended, tracker, experiment=experiment)
