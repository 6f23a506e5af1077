"""Going back to a version of a selection, or on to a what-if: in the home, storage and Dagster."""

import hashlib
from typing import Any

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.data_versions import DATA_VERSION, INPUT_VERSION, version_tags
from selectit_dagster.orchestration.pipeline import Pipeline


def change_version(pipeline: Pipeline, arm: str, name: str, why: str, asked_by: str) -> str:
    """Put a version, or a what-if by its name, into use, in storage too.

    Returns
    -------
    The arm whose selection it is: a what-if knows its own, whatever ``arm`` says.

    Raises
    ------
    UserError
        When there is no such version or what-if.
    """
    found = {str(facts["name"]): str(facts["arm"]) for facts in pipeline.what_ifs()}
    arm = found.get(name, arm)
    history = pipeline.history(arm)
    if name in found:
        pipeline.promote(name, why, asked_by)
    else:
        history.use(name, why)
    if pipeline.store is not None:
        for folder in (*history.folders(), history.selected):
            pipeline.store.publish(folder)
    return arm


def events(
    instance: dg.DagsterInstance, pipeline: Pipeline, access: Access, arm: str
) -> list[dg.AssetMaterialization]:
    """Return what Dagster is told: the arm's set is another one, so what reads it is stale.

    The production dataset is the same folder, so it is another one too.
    """
    history = pipeline.history(arm)
    version = history.current
    if version is None:
        return []
    metadata: dict[str, Any] = {
        "version": dg.MetadataValue.text(history.said()),
        "dagster/row_count": version.selected,
    }
    key = access.key(pipeline.selected_asset)
    chosen = {**version_tags(instance, key, arm), DATA_VERSION: version.digest}
    made = [dg.AssetMaterialization(key, partition=arm, metadata=metadata, tags=chosen)]
    production = access.key(asset_keys.PRODUCTION)
    if arm == pipeline.production_arm and (tags := version_tags(instance, production, None)):
        read = hashlib.sha256(version.digest.encode()).hexdigest()  # as Dagster reads a partition
        tags |= {DATA_VERSION: version.digest, f"{INPUT_VERSION}{key.to_user_string()}": read}
        made.append(dg.AssetMaterialization(production, metadata=metadata, tags=tags))
    return made


def version_job(pipeline: Pipeline, access: Access) -> dg.JobDefinition:
    """Return the job that puts a version or a what-if into use, from Dagster's page."""
    schema = {
        "version": dg.Field(str, description="v3, or the name of a what-if run"),
        "arm": dg.Field(
            dg.Enum(access.name("arm"), [dg.EnumValue(arm) for arm in pipeline.arms]),
            default_value=pipeline.production_arm,
            description="whose selection; a what-if knows its own",
        ),
        "because": dg.Field(str, description="the reason, which is kept with the version"),
    }

    @dg.op(
        name=access.name("use_version"),
        config_schema=schema,
        required_resource_keys={access.resource},
    )
    def use_version(context: dg.OpExecutionContext) -> None:
        pipeline, _ = access.open(context)
        given = context.op_config
        arm = change_version(pipeline, given["arm"], given["version"], given["because"], "page")
        context.log.info(pipeline.history(arm).said())
        for event in events(context.instance, pipeline, access, arm):
            context.log_event(event)

    @dg.job(
        name=access.name("roll_back"),
        tags=access.tags,
        description="Put an earlier version of a selection, or a what-if, into use. It stays until "
        "other data, scores or settings ask for another selection.",
    )
    def roll_back() -> None:
        use_version()

    return roll_back
