"""How a Dagster run and its MLflow runs name each other, and who asked for it."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun, Tracker

# a run's tag and what it says of who asked
_ASKING = {
    "dagster/schedule_name": "schedule",
    "dagster/sensor_name": "sensor",
    "dagster/from_automation_condition": "automation",
    "dagster/auto_materialize": "automation",
    "dagster/backfill": "backfill",
    "selectit/launch": "command",
}


def save_comparison(
    context: dg.AssetExecutionContext, stage: Stage, tracker: Tracker, run: TrackedRun
) -> None:
    """Save a link that compares this run with its like: other partitions, or earlier runs.

    It stands on the asset's page, with the Dagster run as a tag, and in the description of
    its parent in MLflow.
    """
    if run.run_id is None:
        return
    tracker.supersede(stage.asset, stage.partition, run.run_id)
    link = run.links.get("mlflow_comparison") or tracker.comparison_link(stage.asset, run)
    if link is not None:
        run.links["mlflow_comparison"] = link
        context.instance.add_run_tags(context.run.run_id, {"mlflow/comparison": link})
        text = f"[Compare {stage.asset}]({link})"
        tracker.describe_parent(context.run.run_id, f"compare.{stage.asset}", text)


def attempt_tags(context: dg.AssetExecutionContext, stage: Stage, address: str) -> dict[str, str]:
    """Return the tags of an attempt's MLflow run; its description leads back to Dagster."""
    run_id, asset = context.run.run_id, "/".join(context.asset_key.path)
    tags = {
        "dagster.run_id": run_id,
        "dagster.asset_key": context.asset_key.to_user_string(),
        "dagster.attempt": str(context.retry_number + 1),
        "code_version": str(context.assets_def.code_versions_by_key.get(context.asset_key) or ""),
        "asset": stage.asset,
        "mlflow.note.content": f"{_dagster_run(run_id, address)}, "
        f"[Dagster asset {asset}]({address}/assets/{asset})",
    }
    if stage.partition:
        tags["dagster.partition"] = stage.partition
    given = {name: stage.settings.get(name) for name in ("arm", "seed")}
    return tags | {n: str(value) for n, value in given.items() if isinstance(value, str | int)}


def _dagster_run(run_id: str, address: str) -> str:
    return f"[Dagster run {run_id[:8]}]({address}/runs/{run_id})"


def open_parent(context: dg.AssetExecutionContext, tracker: Tracker) -> str | None:
    """Return the parent MLflow run of this Dagster run and link the two."""
    run = context.run
    if known := run.tags.get("mlflow/run_id"):
        return known
    tags = {
        "dagster.job": run.job_name,
        "selectit.launch": run.tags.get("selectit/launch", ""),
        "mlflow.note.content": _dagster_run(run.run_id, tracker.dagster_url),
    }
    what = run.tags.get("selectit/what") or _launched(run)
    parent = tracker.parent(run.run_id, f"{what} · {run.run_id[:8]}", tags)
    if parent is not None:
        link = tracker.link(parent)
        found = {"mlflow/run_id": parent, **({"mlflow/url": link} if link else {})}
        context.instance.add_run_tags(run.run_id, found)
    return parent


def asked_by(tags: Mapping[str, str]) -> str:
    """Return who or what asked for a run, as a person names it."""
    for tag, what in _ASKING.items():
        if tag in tags:
            return f"{what} {tags[tag]}" if what in ("schedule", "sensor") else what
    return f"page ({tags['user']})" if "user" in tags else "page"


def _launched(run: dg.DagsterRun) -> str:
    """Return what a run makes, as a person names it: its job, or the assets that were chosen."""
    if not run.job_name.startswith("__") or not run.asset_selection:
        return run.job_name
    names = sorted(key.to_user_string() for key in run.asset_selection)
    partition = run.tags.get("dagster/partition")
    title = names[0] if len(names) == 1 else f"{len(names)} assets"
    return f"{partition} · {title}" if partition else title
