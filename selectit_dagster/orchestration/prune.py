"""What may be removed from a home: versions, what-ifs, old runs of Dagster and MLflow."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.orchestration.pipeline import Pipeline

_DAY = 86_400.0


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
    before = time.time() - days * _DAY
    found = [*_versions(pipeline, keep), *_what_ifs(pipeline, before)]
    found += _experiments(pipeline, experiments)
    return [*found, *_dagster_runs(pipeline, before), *_mlflow_runs(pipeline, before)]


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files that lie nowhere else."""
    stats = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _versions(pipeline: Pipeline, keep: int | None) -> Iterator[Removable]:
    for arm in pipeline.arms:
        history = pipeline.history(arm)
        for version in history.removable(keep):
            yield Removable(
                "version",
                f"{arm} {version.name}",
                f"of {version.made_at[:10]}",
                history.bytes_of(version),
                partial(history.prune, [version]),
            )


def _what_ifs(pipeline: Pipeline, before: float) -> Iterator[Removable]:
    for facts in pipeline.what_ifs():
        folder = pipeline.home.what_ifs / str(facts["name"])
        if folder.stat().st_mtime < before:
            yield _folder("what-if", folder, f"of {str(facts['made_at'])[:10]}")


def _experiments(pipeline: Pipeline, names: tuple[str, ...]) -> Iterator[Removable]:
    root = pipeline.home.root / "experiments"
    for name in names:
        folder = root / name
        others = sorted(p.name for p in root.iterdir() if p.is_dir() and p != pipeline.home.folder)
        if name not in others:
            raise UserError(
                f"{name} is no other experiment of this home",
                hint=f"there are {', '.join(others)}" if others else "there is no other one",
            )
        yield _folder("experiment", folder, "asked for by name")


def _folder(kind: str, folder: Path, why: str) -> Removable:
    return Removable(kind, folder.name, why, size_of(folder), lambda: shutil.rmtree(folder))


def _dagster_runs(pipeline: Pipeline, before: float) -> list[Removable]:
    """Return the finished runs that are old and made nothing that is still the newest."""
    from datetime import UTC, datetime

    import dagster as dg

    from selectit_dagster.orchestration.instance import open_instance

    if not pipeline.home.dagster.exists():
        return []
    logs = pipeline.home.dagster / "storage"

    def remove(run_id: str) -> None:
        with open_instance(pipeline.home.dagster) as instance:
            instance.delete_run(run_id)
        shutil.rmtree(logs / run_id, ignore_errors=True)

    with open_instance(pipeline.home.dagster) as instance:
        ended = [status for status in dg.DagsterRunStatus if status.value in _ENDED]
        older = dg.RunsFilter(statuses=ended, created_before=datetime.fromtimestamp(before, UTC))
        newest = _newest_runs(instance)
        return [
            Removable(
                "Dagster run",
                run.run_id[:8],
                run.job_name,
                size_of(logs / run.run_id),
                partial(remove, run.run_id),
            )
            for run in instance.get_runs(older)
            if run.run_id not in newest
        ]


_ENDED = {"SUCCESS", "FAILURE", "CANCELED"}


def _newest_runs(instance: Any) -> set[str]:  # noqa: ANN401 - Dagster's instance
    """Return the runs that made what Dagster shows of each asset and partition."""
    import dagster as dg

    found: set[str] = set()
    for key in instance.all_asset_keys():
        for partition in (None, *instance.get_materialized_partitions(key)):
            wanted = dg.AssetRecordsFilter(
                asset_key=key, asset_partitions=[partition] if partition else None
            )
            records = instance.fetch_materializations(wanted, limit=1).records
            found.update(record.run_id for record in records)
    return found


def _mlflow_runs(pipeline: Pipeline, before: float) -> list[Removable]:
    """Return the ended runs of the home's own store that are old and not current."""
    store = pipeline.home.mlflow / "mlflow.db"
    if not store.exists():
        return []
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    uri = f"sqlite:///{store}"
    client = MlflowClient(uri)
    keep = _runs_in_use(pipeline)
    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
    query = f"attributes.end_time < {int(before * 1000)}"
    found, ids = [], []
    for run in client.search_runs(experiments, query, ViewType.ALL, max_results=50_000):
        if run.data.tags.get("current") == "yes" or run.info.run_id in keep:
            continue
        ids.append(run.info.run_id)
        artifacts = Path(str(run.info.artifact_uri).removeprefix("file://"))
        found.append(
            Removable(
                "MLflow run",
                run.info.run_id[:8],
                str(run.info.run_name),
                size_of(artifacts.parent) if artifacts.is_absolute() else 0,
                partial(_mark_deleted, client, run.info.run_id),
            )
        )
    if ids:  # what is marked goes for good in one call, which takes seconds to start
        whole = partial(_forget, uri, ids)
        found.append(Removable("MLflow store", "deleted runs", "for good", 0, whole))
    return found


def _runs_in_use(pipeline: Pipeline) -> set[str]:
    """Return the MLflow runs that kept versions name."""
    versions = (v for arm in pipeline.arms for v in pipeline.history(arm).state.versions)
    return {version.mlflow_run for version in versions if version.kept}


def _mark_deleted(client: Any, run_id: str) -> None:  # noqa: ANN401 - MLflow's client
    if client.get_run(run_id).info.lifecycle_stage == "active":
        client.delete_run(run_id)


def _forget(uri: str, run_ids: list[str]) -> None:
    """Delete runs that are marked as deleted with their artefacts for good.

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
