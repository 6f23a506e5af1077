"""Jobs, the re-selection schedule, sensors and automation conditions.

Scoring, ranking and selecting follow real changes of the data; tuning and evaluation cost
too much to start by themselves and stay opt-in.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.address import is_address
from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.artefacts.manifest import MANIFEST, read_manifest
from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.experiment import DatasetSection, is_hub_name
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import Access
from selectit_dagster.progress import Silent

_OWNER = "team:ml-platform"
# the re-selection is weekly by default: a day late is worth a look, a week late is stale
_FRESH = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=14), warn_window=timedelta(days=8)
)
_FOLLOWS = ("curated_dataset", "uncertainty_scores", "ranking", "selective_alpaca")
# a file younger than this may still be written; seconds
_SETTLE = 5.0
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
        now = {key: _latest_version(view.instance, key, None)[0] for key in parents}
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
    """Return the assets with their owner, those up to the selection following changed data."""
    condition = follow_changed_data()

    def follow(spec: dg.AssetSpec) -> dg.AssetSpec:
        owned = spec.replace_attributes(owners=[_OWNER])
        name = spec.key.path[len(access.prefix)]
        if name not in _FOLLOWS:
            return owned
        if name == "selective_alpaca":
            owned = owned.replace_attributes(freshness_policy=_FRESH)
        return owned.replace_attributes(automation_condition=condition)

    return [asset.map_asset_specs(follow) for asset in assets]


def jobs(pipeline: Pipeline, access: Access) -> dict[str, Any]:
    """Return the jobs that a person or a trigger starts, by their plain names."""
    tuning = ("lora_checkpoints", "benchmark_evaluations")
    found = {
        "reselect": _job(
            access,
            "reselect",
            _selection_assets(pipeline, access),
            "From the raw dataset to one arm's selected set: read the source, rate what is "
            "new, rank, select, and say what entered, what left and why.",
        ),
        "write_subsets": _job(
            access,
            "write_subsets",
            dg.AssetSelection.assets(access.key("selective_alpaca")),
            "Write one arm's subset from the stored ranking.",
        ),
    }
    if pipeline.experiment.tuning is not None:
        found["tune_and_evaluate"] = _job(
            access,
            "tune_and_evaluate",
            dg.AssetSelection.assets(*(access.key(name) for name in tuning)),
            "Tune and evaluate one arm with one training seed.",
        )
    return found


def _job(access: Access, name: str, selection: dg.AssetSelection, description: str) -> Any:  # noqa: ANN401
    return dg.define_asset_job(access.name(name), selection=selection, description=description)


def _selection_assets(pipeline: Pipeline, access: Access) -> dg.AssetSelection:
    names = ["raw_dataset", "curated_dataset", "ranking", "selective_alpaca"]
    if pipeline.experiment.benchmarks:
        names.append("benchmark_questions")
    scores = dg.AssetSelection.key_prefixes(access.key("uncertainty_scores").path)
    return dg.AssetSelection.assets(*(access.key(name) for name in names)) | scores


def main_arm(pipeline: Pipeline) -> str:
    """Return the arm that is re-selected by itself: SelectIT's, or the first."""
    return "selectit" if "selectit" in pipeline.arms else next(iter(pipeline.arms))


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
        return dg.RunRequest(partition_key=main_arm(pipeline))

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
    """Return the sensor that re-selects when the dataset's file or hub revision changed."""
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
        if context.cursor == state:
            return _skip("unchanged")
        if age < _SETTLE:
            return _skip("changed a moment ago; waiting for its end")
        try:
            _bring_last_reading(pipeline)
        except (TransientError, UserError) as error:
            return _skip(str(error))
        if (reason := _nothing_new(pipeline)) is not None:
            return _skip(reason, state)
        # a file may come back as it once was: only since the last reading is a key unique
        read_at = (pipeline.home.raw / MANIFEST).stat().st_mtime_ns
        key = f"{access.name('dataset')}-{state}-{read_at}"
        request = dg.RunRequest(run_key=key, partition_key=main_arm(pipeline))
        return dg.SensorResult(cursor=state, run_requests=[request])

    return dataset_changed


def _skip(reason: str, cursor: str | None = None) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=dg.SkipReason(reason), cursor=cursor)


def _source_state(section: DatasetSection, on_hub: bool) -> tuple[str, float]:
    """Return what changes when the source does, and the source's age in seconds."""
    if on_hub:
        return _hub_state(section)
    if is_address(section.path):
        from selectit_dagster.artefacts.remote_files import token

        return token(section.path)[:16], _SETTLE  # an object is complete at once
    return _file_state(Path(section.path))


def _file_state(path: Path) -> tuple[str, float]:
    """Return size and time of a file, or of every file of a folder, and its age in seconds."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(str(file.relative_to(path.parent)), file.stat()) for file in files]
    if not stats:
        raise FileNotFoundError(f"there is no {path}")
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
