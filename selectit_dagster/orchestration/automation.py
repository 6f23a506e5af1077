"""Jobs, the re-selection schedule, sensors and automation conditions.

Scoring, ranking and selecting follow real changes of the data; tuning and evaluation cost
too much to start by themselves and stay opt-in.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.address import is_address
from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.artefacts.manifest import MANIFEST, read_manifest
from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.experiment import DatasetSection, is_hub_name
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Silent

# groups that follow changed data by themselves, but for what opens them and what only looks on
_FOLLOWING = (asset_keys.DATA, asset_keys.RATING, asset_keys.SELECTION)
_OPENING = (asset_keys.RAW, asset_keys.QUESTIONS, asset_keys.SENSITIVITY)
# a file younger than this may still be written; seconds
_SETTLE = 5.0
# which change of the source a run is for, and how many runs are tried for one
SOURCE_TAG = "selectit/source"
_ATTEMPTS = 3
_DATA_VERSION = "dagster/data_version"
_INPUT_VERSION = "dagster/input_data_version/"


class MadeFromOtherData(dg.AutomationCondition):
    """True where an asset was made from other data than its upstream assets hold now.

    Dagster stores with every materialisation which data versions it read. Asking for a
    difference, rather than for an event, cannot miss a change and cannot see one twice: not
    after the schedule has already brought the asset up to date, and not where the data came
    out the same. What was never made counts as made from other data.
    """

    @property
    def name(self) -> str:
        """Name in Dagster's page."""
        return "made_from_other_data"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        """Return the partitions among the candidates that are out of date."""
        asked, view = context.candidate_subset, context.asset_graph_view
        parents = view.asset_graph.get(context.key).parent_keys
        now = {key: _version_read(view, asked, key) for key in parents}
        if not asked.is_partitioned:
            outdated = asked.is_empty or _is_current(view.instance, context.key, None, now)
            subset = context.get_empty_subset() if outdated else asked
            return dg.AutomationResult(context, subset)
        keys = {
            key
            for key in asked.expensively_compute_partition_keys()
            if not _is_current(view.instance, context.key, key, now)
        }
        subset = asked.compute_intersection_with_partition_keys(keys)
        return dg.AutomationResult(context, subset)


def _version_read(view: Any, asked: Any, parent: dg.AssetKey) -> str | None:  # noqa: ANN401
    """Return the data version that a materialisation of ``asked`` would read of its parent.

    Of several partitions Dagster takes the hash of their versions.
    """
    upstream = view.compute_parent_subset(parent, asked)
    if not upstream.is_partitioned:
        return _latest_version(view.instance, parent, None)[0]
    keys = sorted(upstream.expensively_compute_partition_keys())
    found = [_latest_version(view.instance, parent, key)[0] for key in keys]
    return hashlib.sha256("".join(v or "" for v in found).encode()).hexdigest()


def _latest_version(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None
) -> tuple[str | None, dict[str, str]]:
    """Return the newest data version of an asset and the tags of its materialisation."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None),
        limit=1,
    ).records
    made = records[0].asset_materialization if records else None
    tags = dict(made.tags or {}) if made is not None else {}
    return tags.get(_DATA_VERSION), tags


def _is_current(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    partition: str | None,
    now: dict[dg.AssetKey, str | None],
) -> bool:
    """Tell whether an asset was made, and from the data versions in ``now``."""
    version, tags = _latest_version(instance, key, partition)
    return version is not None and all(
        tags.get(f"{_INPUT_VERSION}{parent.to_user_string()}") == wanted
        for parent, wanted in now.items()
    )


def follow_changed_data() -> dg.AutomationCondition:
    """Return the condition: run once when an upstream asset has a new data version.

    ``eager`` fires on every upstream materialisation, also of unchanged data. A change is
    remembered until it was acted on, so that one that lands on the tick after a request is
    not lost, and a failed attempt is not repeated until the data change again.
    """
    changed = (
        dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
        | dg.AutomationCondition.initial_evaluation()
    ).since(dg.AutomationCondition.newly_requested())
    return (
        changed
        & MadeFromOtherData()
        # what depends on a model's scores and on the records waits for the scores
        & ~dg.AutomationCondition.any_deps_match(MadeFromOtherData())
        & ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
    ).with_label("upstream data changed")


def with_conditions(
    assets: Iterable[dg.AssetsDefinition], access: Access
) -> list[dg.AssetsDefinition]:
    """Return the assets, those up to the selection following changed data."""
    condition = follow_changed_data()
    groups = {access.name(group) for group in _FOLLOWING}
    opening = {access.key(name) for name in _OPENING}

    def follow(spec: dg.AssetSpec) -> dg.AssetSpec:
        if spec.group_name not in groups or spec.key in opening:
            return spec
        return spec.replace_attributes(automation_condition=condition)

    return [asset.map_asset_specs(follow) for asset in assets]


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


def automation_sensor(
    assets: list[dg.AssetsDefinition], access: Access
) -> dg.AutomationConditionSensorDefinition:
    """Return the sensor that acts on these assets' conditions, and on no others'."""
    with warnings.catch_warnings():
        # our own condition has to be evaluated where our code is; that option is in beta
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.AutomationConditionSensorDefinition(
            access.name("follow_changed_data"),
            target=dg.AssetSelection.assets(*(key for asset in assets for key in asset.keys)),
            minimum_interval_seconds=30,
            use_user_code_server=True,
            description="Bring the subsets up to date when upstream data really changed.",
        )


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
            _bring_last_reading(pipeline)
        except (TransientError, UserError) as error:
            return _skip(str(error))
        if not runs and (reason := _nothing_new(pipeline)) is not None:
            return _skip(reason, f"{count}:{state}")
        request = dg.RunRequest(
            run_key=f"{access.name('dataset')}-{change}-{len(runs)}-{_read_at(pipeline)}",
            partition_key=pipeline.production_arm,
            tags={SOURCE_TAG: change},
        )
        return dg.SensorResult(run_requests=[request])

    return dataset_changed


def _read_at(pipeline: Pipeline) -> int:
    return (pipeline.home.raw / MANIFEST).stat().st_mtime_ns


def _skip(reason: str, cursor: str | None = None) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=dg.SkipReason(reason), cursor=cursor)


def _source_state(section: DatasetSection, on_hub: bool) -> tuple[str, float]:
    """Return what changes when the source does, and the source's age in seconds."""
    if on_hub:
        return _hub_state(section)
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


def _hub_state(section: DatasetSection) -> tuple[str, float]:
    """Return the commit of a hub dataset's revision; a commit is complete at once."""
    from selectit_dagster.data.arrow_reader import resolve_hub_commit

    return resolve_hub_commit(section.path, section.revision)[:16], _SETTLE


def _bring_last_reading(pipeline: Pipeline) -> None:
    """Fetch what another machine has read of the source, where there is storage."""
    if pipeline.store is not None:
        from selectit_dagster.orchestration.remote_sync import bring

        bring(pipeline.store, pipeline.home.raw, Silent())


def _nothing_new(pipeline: Pipeline) -> str | None:
    """Return why a source that looks changed needs no run, or None when it does."""
    raw = pipeline.raw()
    if read_manifest(raw.folder) is None:
        return "never read so far: materialise raw_dataset once"
    try:
        return "touched, but its content is the one that was read" if raw.is_current() else None
    except (UserError, TransientError):
        return None  # the run says what is wrong with it, where everybody sees it
