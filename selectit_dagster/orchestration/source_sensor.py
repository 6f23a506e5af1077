"""The sensor that re-selects when the dataset's file, object or hub revision has changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.address import is_address
from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.artefacts.manifest import MANIFEST, read_manifest
from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.experiment import DatasetSection, is_hub_name
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.remote_sync import bring
from selectit_dagster.progress import Silent

# a file younger than this may still be written; seconds
_SETTLE = 5.0
# which change of the source a run is for, and how many runs are tried for one
SOURCE_TAG = "selectit/source"
_ATTEMPTS = 3


def source_sensor(pipeline: Pipeline, access: Access, job: Any) -> dg.SensorDefinition:  # noqa: ANN401
    """Return the sensor that re-selects when the dataset's file or hub revision changed.

    Its cursor is what was last selected from, so it moves when a run has succeeded and not when
    one is asked for. A run that failed is asked for again, a few times.
    """
    section = pipeline.experiment.dataset
    on_hub = not Path(section.path).exists() and is_hub_name(section.path)
    what = f"the hub's commit of {section.path}" if on_hub else Path(section.path).name

    @dg.sensor(
        name=access.name("dataset_changed"),
        job=job,
        minimum_interval_seconds=900 if on_hub else 30,
        description=f"Re-select when {what} has changed.",
    )
    def dataset_changed(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        try:
            state, age = _source_state(section, on_hub)
        except (OSError, TransientError, UserError) as error:
            return _skip(f"{what} cannot be read: {error}")
        count, _, done = (context.cursor or "0:").partition(":")
        if done == state:
            return _skip("unchanged")
        if age < _SETTLE:
            return _skip("changed a moment ago; waiting for its end")
        # a file may come back as it once was: the number of changes so far tells them apart
        change = f"{int(count) + 1}:{state}"
        filters = dg.RunsFilter(job_name=job.name, tags={SOURCE_TAG: change})
        runs = context.instance.get_runs(filters)
        if any(not run.is_finished for run in runs):
            return _skip("a run is re-selecting from it")
        if any(run.is_success for run in runs):
            return _skip("re-selected from it", change)
        if len(runs) >= _ATTEMPTS:
            return _skip(f"{len(runs)} runs over it failed; the newest says why, and what to do")
        try:
            if pipeline.store is not None:  # what another machine has read of the source
                bring(pipeline.store, pipeline.home.raw, Silent())
        except (TransientError, UserError) as error:
            return _skip(str(error))
        if not runs and (reason := _nothing_new(pipeline)) is not None:
            return _skip(reason, f"{count}:{state}")
        read_at = (pipeline.home.raw / MANIFEST).stat().st_mtime_ns
        request = dg.RunRequest(
            run_key=f"{access.name('dataset')}-{change}-{len(runs)}-{read_at}",
            partition_key=pipeline.production_arm,
            tags={SOURCE_TAG: change},
        )
        return dg.SensorResult(run_requests=[request])

    return dataset_changed


def _skip(reason: str, cursor: str | None = None) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=dg.SkipReason(reason), cursor=cursor)


def _source_state(section: DatasetSection, on_hub: bool) -> tuple[str, float]:
    """Return what changes when the source does, and the source's age in seconds."""
    if on_hub:
        from selectit_dagster.data.ingest import dataset_commit

        # a commit is complete at once
        return dataset_commit(section)[:16], _SETTLE
    if is_address(section.path):
        from selectit_dagster.artefacts.remote_files import token

        return token(section.path)[:16], _SETTLE  # an object is complete at once
    from selectit_dagster.data.input_files import matches

    return _file_state([found for path in (section.path, *section.more) for found in matches(path)])


def _file_state(paths: list[Path]) -> tuple[str, float]:
    """Return size and time of files, and of every file of folders, and the newest's age."""
    stats = []
    for path in paths:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        stats += [(str(file.relative_to(path.parent)), file.stat()) for file in files]
    if not stats:
        raise FileNotFoundError(f"there is no {', '.join(map(str, paths)) or 'file that matches'}")
    newest = max(stat.st_mtime for _, stat in stats)
    state = sha256_json([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
    return state[:16], time.time() - newest


def _nothing_new(pipeline: Pipeline) -> str | None:
    """Return why a source that looks changed needs no run, or None when it does."""
    raw = pipeline.raw()
    if read_manifest(raw.folder) is None:
        return "never read so far: materialise raw_dataset once"
    try:
        return "touched, but its content is the one that was read" if raw.is_current() else None
    except (UserError, TransientError):
        return None  # the run says what is wrong with it, where everybody sees it
