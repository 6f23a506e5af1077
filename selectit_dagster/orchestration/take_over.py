"""What Dagster knows of an experiment's artefacts, and what it knew of them under former keys.

Before the experiment was part of the asset keys, ``ranking`` was that of whichever experiment ran
last. An artefact that is still the one that was recorded then is recorded again under its new
key, with its page, its checks and its links; nothing is made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import dagster as dg

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage

_DATA_VERSION = "dagster/data_version"
_INPUT_VERSION = "dagster/input_data_version/"
Known = set[tuple[str, str | None]]


def take_over(
    instance: dg.DagsterInstance, pipeline: Pipeline, definitions: dg.Definitions
) -> Known:
    """Record what is known under a former key, and return the assets and partitions known now."""
    access = Access.of(pipeline.experiment)
    checks: dict[dg.AssetKey, list[str]] = {}
    for check in definitions.resolve_asset_graph().asset_check_keys:
        checks.setdefault(check.asset_key, []).append(check.name)
    known: Known = set()
    for stage in (stage for phase in pipeline.phases() for stage in phase):
        key = access.stage_key(stage)
        if _newest(instance, key, stage.partition) or _record(
            instance, pipeline, access, stage, checks.get(key, ())
        ):
            known.add((stage.asset, stage.partition))
    return known


def _newest(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None
) -> dg.AssetMaterialization | None:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None),
        limit=1,
    ).records
    return records[0].asset_materialization if records else None


def _record(
    instance: dg.DagsterInstance,
    pipeline: Pipeline,
    access: Access,
    stage: Stage,
    checks: Iterable[str],
) -> bool:
    """Record a stage's artefact as Dagster had it under its former key; False where it had not."""
    manifest = read_manifest(stage.folder)
    former = dg.AssetKey([*_former(pipeline, stage.asset).split("/")])
    old = _newest(instance, former, stage.partition)
    if manifest is None or old is None or (old.tags or {}).get(_DATA_VERSION) != manifest.digest:
        return False
    key = access.stage_key(stage)
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            asset_key=key,
            description="taken over from the key that this home had before",
            metadata=old.metadata,
            partition=stage.partition,
            tags=dict(_renamed(pipeline, access, old.tags or {})),
        )
    )
    for check in _checks(instance, former, checks):
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=check.check_name,
                passed=check.passed,
                metadata=check.metadata,
                description=check.description,
            )
        )
    return True


def _former(pipeline: Pipeline, asset: str) -> str:
    """Return the key that an asset had before the experiment was part of it."""
    if asset == pipeline.selected_asset:
        return asset_keys.FORMER_SELECTED
    return "/".join(map(asset_keys.key_part, asset.split("/")))


def _renamed(
    pipeline: Pipeline, access: Access, tags: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the tags of a materialisation, the assets that it read under their new keys."""
    new = {_former(pipeline, s.asset): access.stage_key(s) for p in pipeline.phases() for s in p}
    for name, value in tags.items():
        if name == _DATA_VERSION:
            yield name, value
        elif name.startswith(_INPUT_VERSION) and (
            key := new.get(name.removeprefix(_INPUT_VERSION))
        ):
            yield f"{_INPUT_VERSION}{key.to_user_string()}", value


def _checks(
    instance: dg.DagsterInstance, key: dg.AssetKey, names: Iterable[str]
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield the newest outcome of an asset's checks."""
    keys = [dg.AssetCheckKey(key, name) for name in names]
    for found in instance.event_log_storage.get_latest_asset_check_execution_by_key(keys).values():
        event = found.event.dagster_event if found.event is not None else None
        if event is not None and isinstance(event.event_specific_data, dg.AssetCheckEvaluation):
            yield event.event_specific_data
