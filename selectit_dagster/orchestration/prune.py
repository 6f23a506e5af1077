"""What may be removed from a home: versions, what-ifs, old runs of Dagster and MLflow."""

import datetime as dt
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dagster as dg

from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.orchestration.instance import newest, open_instance
from selectit_dagster.orchestration.pipeline import Pipeline

_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class Removable:
    """One thing that may go: what it is, why, how many bytes that frees, and how it is removed."""

    kind: str
    name: str
    why: str
    size: int
    remove: Callable[[], object]


def removable(
    pipeline: Pipeline, *, keep: int | None, days: float, experiments: tuple[str, ...] = ()
) -> list[Removable]:
    """Return what is beyond what is kept.

    Parameters
    ----------
    keep:
        Versions to keep of each selection; the experiment file's number when None. The current
        one and those that a checkpoint was made from are kept anyway.
    days:
        What-ifs and finished runs older than this may go, but for the newest run of each asset.
    experiments:
        Other experiments of this home that may go wholly, artefacts and versions.

    Raises
    ------
    UserError
        When an experiment is not there, or is the one that is open.
    """
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    return [
        *_versions(pipeline, keep),
        *_what_ifs(pipeline, before),
        *_experiments(pipeline, experiments),
        *_dagster_runs(pipeline, before),
        *_mlflow_runs(pipeline, before),
    ]


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files that lie nowhere else."""
    stats = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _folder(kind: str, folder: Path, why: str) -> Removable:
    return Removable(kind, folder.name, why, size_of(folder), lambda: shutil.rmtree(folder))


def _versions(pipeline: Pipeline, keep: int | None) -> Iterator[Removable]:
    for arm in pipeline.arms:
        history = pipeline.history(arm)
        for version in history.removable(keep):
            name, why = f"{arm} {version.name}", f"of {version.made_at[:10]}"
            size = history.bytes_of(version)
            yield Removable("version", name, why, size, partial(history.prune, [version]))


def _what_ifs(pipeline: Pipeline, before: dt.datetime) -> Iterator[Removable]:
    for facts in pipeline.what_ifs():
        folder = pipeline.home.what_ifs / str(facts["name"])
        if folder.stat().st_mtime < before.timestamp():
            yield _folder("what-if", folder, f"of {str(facts['made_at'])[:10]}")


def _experiments(pipeline: Pipeline, names: tuple[str, ...]) -> Iterator[Removable]:
    root = pipeline.home.root / "experiments"
    for name in names:
        others = sorted(p.name for p in root.iterdir() if p.is_dir() and p != pipeline.home.folder)
        if name not in others:
            raise UserError(
                f"{name} is no other experiment of this home",
                hint=f"there are {', '.join(others)}" if others else "there is no other one",
            )
        yield _folder("experiment", root / name, "asked for by name")


# --- Dagster's runs -----------------------------------------------------------------------------


def _dagster_runs(pipeline: Pipeline, before: dt.datetime) -> list[Removable]:
    if not pipeline.home.dagster.exists():
        return []
    logs = pipeline.home.dagster / "storage"

    def remove(run_id: str) -> None:
        with open_instance(pipeline.home.dagster) as instance:
            instance.delete_run(run_id)
        shutil.rmtree(logs / run_id, ignore_errors=True)

    with open_instance(pipeline.home.dagster) as instance:
        return [
            Removable(
                "Dagster run",
                run.run_id[:8],
                run.job_name,
                size_of(logs / run.run_id),
                partial(remove, run.run_id),
            )
            for run in old_runs(instance, before)
        ]


def old_runs(instance: dg.DagsterInstance, before: dt.datetime) -> list[dg.DagsterRun]:
    """Return the runs that ended before a time and are not the newest that made an asset.

    With the events of such a run Dagster would forget that the artefact is there.
    """
    older = dg.RunsFilter(statuses=_ENDED, updated_before=before)
    return [run for run in instance.get_runs(older) if not _made_what_is_newest(instance, run)]


def _made_what_is_newest(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    made = (entry.asset_materialization for entry in events)
    records = (newest(instance, one.asset_key, one.partition) for one in made if one is not None)
    return any(record is not None and record.run_id == run.run_id for record in records)


def weekly_removal() -> dg.Definitions:
    """Return a weekly job for runs older than ``$SELECTIT_KEEP_RUNS_DAYS``; nothing without it."""
    if not (days := os.environ.get("SELECTIT_KEEP_RUNS_DAYS")):
        return dg.Definitions()

    @dg.op
    def forget_runs_of_before(context: dg.OpExecutionContext) -> None:
        old = old_runs(context.instance, dt.datetime.now(dt.UTC) - dt.timedelta(days=float(days)))
        for run in old:
            context.instance.delete_run(run.run_id)
        context.log.info("%d runs deleted", len(old))

    @dg.job(description=f"Delete runs that ended more than {days} days ago.")
    def forget_old_runs() -> None:
        forget_runs_of_before()

    weekly = dg.ScheduleDefinition(
        job=forget_old_runs,
        cron_schedule="30 3 * * 0",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return dg.Definitions(jobs=[forget_old_runs], schedules=[weekly])


# --- MLflow's runs ------------------------------------------------------------------------------


def _mlflow_runs(pipeline: Pipeline, before: dt.datetime) -> list[Removable]:
    """Return the ended runs of the home's own store that are old and not current."""
    store = pipeline.home.mlflow / "mlflow.db"
    if not store.exists():
        return []
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(f"sqlite:///{store}")
    versions = (v for arm in pipeline.arms for v in pipeline.history(arm).state.versions)
    in_use = {version.mlflow_run for version in versions if version.kept}
    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
    query = f"attributes.end_time < {int(before.timestamp() * 1000)}"
    old = [
        run
        for run in client.search_runs(experiments, query, ViewType.ALL, max_results=50_000)
        if run.data.tags.get("current") != "yes" and run.info.run_id not in in_use
    ]

    def forget() -> None:
        for run in old:
            if run.info.lifecycle_stage == "active":
                client.delete_run(run.info.run_id)
        _collect(f"sqlite:///{store}", [run.info.run_id for run in old])

    found = []
    for run in old:
        artifacts = Path(str(run.info.artifact_uri).removeprefix("file://"))
        size = size_of(artifacts.parent) if artifacts.is_absolute() else 0
        name, title = run.info.run_id[:8], str(run.info.run_name)
        # all go with the last one, in one call of MLflow's that takes seconds to start
        remove = forget if run is old[-1] else lambda: None
        found.append(Removable("MLflow run", name, title, size, remove))
    return found


def _collect(uri: str, run_ids: list[str]) -> None:
    """Delete runs that are marked as deleted, with their artefacts, for good.

    Raises
    ------
    TransientError
        When MLflow refuses.
    """
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    command += ["--tracking-uri", uri, "--run-ids", ",".join(run_ids)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TransientError(f"MLflow keeps {len(run_ids)} runs: {done.stderr.strip()[-300:]}")
