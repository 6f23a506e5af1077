"""Data versions in Dagster, and what follows changed data by itself: conditions and their sensor.

Scoring, ranking and selecting follow real changes of the data; tuning and evaluation cost
too much to start by themselves and stay opt-in.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from typing import Any

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.instance import newest

DATA_VERSION = "dagster/data_version"
INPUT_VERSION = "dagster/input_data_version/"
# groups that follow changed data by themselves, but for what opens them and what only looks on
_FOLLOWING = (asset_keys.DATA, asset_keys.RATING, asset_keys.SELECTION)
_OPENING = (asset_keys.RAW, asset_keys.QUESTIONS, asset_keys.SENSITIVITY)


def version_tags(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None
) -> dict[str, str]:
    """Return the newest materialisation's data version and those that it read, as Dagster's tags.

    There are none where it was never made.
    """
    record = newest(instance, key, partition)
    made = record.asset_materialization if record is not None else None
    tags = (made.tags or {}) if made is not None else {}
    return {n: v for n, v in tags.items() if n == DATA_VERSION or n.startswith(INPUT_VERSION)}


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
        return version_tags(view.instance, parent, None).get(DATA_VERSION)
    keys = sorted(upstream.expensively_compute_partition_keys())
    found = [version_tags(view.instance, parent, key).get(DATA_VERSION, "") for key in keys]
    return hashlib.sha256("".join(found).encode()).hexdigest()


def _is_current(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    partition: str | None,
    now: dict[dg.AssetKey, str | None],
) -> bool:
    """Tell whether an asset was made, and from the data versions in ``now``."""
    tags = version_tags(instance, key, partition)
    return DATA_VERSION in tags and all(
        tags.get(f"{INPUT_VERSION}{parent.to_user_string()}") == wanted
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
