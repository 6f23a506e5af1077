"""What every asset is and does around its engine: MLflow run, progress, errors, metadata, checks.

Permanent errors (the user's input) fail without retries and carry their remedy; transient
ones are retried by Dagster and resume from what the engine stored.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import MANIFEST, Manifest
from selectit_dagster.errors import (
    PassingError,
    TransientError,
    UserError,
    of_the_machine,
)
from selectit_dagster.orchestration.asset_checks import Check
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, base_metadata, picture
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.run_monitoring import end_with_parent
from selectit_dagster.orchestration.run_plan import planned_seconds
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import (
    TrackedRun,
    Tracker,
    numbers,
    record_manifest,
    split_constants,
)
from selectit_dagster.progress import Reporter

_TRANSIENT = (TransientError, PassingError, ConnectionError, TimeoutError)
# every line stays in two databases: a step of a week leaves about 300, one of an hour 130
_STRETCH = 0.03
# a run's tag and what it says of who asked
_ASKING = {
    "dagster/schedule_name": "schedule",
    "dagster/sensor_name": "sensor",
    "dagster/from_automation_condition": "automation",
    "dagster/auto_materialize": "automation",
    "dagster/backfill": "backfill",
    "selectit/launch": "command",
}
_RETRIES = 3
REFUSED = "manifest.refused.json"
_RETRY_SECONDS = 10


def _nothing(stage: Stage, manifest: Manifest) -> dict[str, Any]:
    return {}


def _all_numbers(stage: Stage, manifest: Manifest) -> dict[str, float]:
    return numbers(manifest.details)


def _no_tracking(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    return None


@dataclass(frozen=True)
class Page:
    """What a person sees of an asset, beyond what every asset shows.

    Attributes
    ----------
    data_file:
        The Parquet file whose rows, schema and first rows are shown.
    checks:
        What is looked at before anything builds on the artefact.
    pictures:
        Returns PNGs by name that are drawn for the pages; stored ones are shown anyway.
    describe:
        Returns metadata of the artefact.
    metrics:
        Returns the figures that MLflow compares; the numbers of the manifest's details.
    track:
        Logs what else belongs to the MLflow run.
    """

    data_file: str | None = None
    checks: tuple[Check, ...] = ()
    pictures: Callable[[Stage, Manifest], dict[str, bytes]] = _nothing
    describe: Callable[[Stage, Manifest], Metadata] = _nothing
    metrics: Callable[[Stage, Manifest], dict[str, float]] = _all_numbers
    track: Callable[[TrackedRun, Stage, Manifest], None] = _no_tracking


def stage_asset(
    access: Access,
    name: str,
    page: Page,
    *,
    group: str,
    deps: Iterable[str | dg.AssetDep] = (),
    partitions_def: dg.PartitionsDefinition[str] | None = None,
    **more: Any,  # noqa: ANN401 - further arguments of dg.asset
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return ``dg.asset`` with what all assets share; ``name`` and ``deps`` are asset names."""
    key = access.key(name)
    return dg.asset(
        key=key,
        deps=[access.key(dep) if isinstance(dep, str) else dep for dep in deps],
        group_name=access.name(group),
        owners=access.owners,
        code_version="1",
        required_resource_keys=access.keys,
        partitions_def=partitions_def,
        check_specs=_specs(key, page, partitions_def),
        **more,
    )


def _specs(
    key: dg.AssetKey, page: Page, partitions_def: dg.PartitionsDefinition[str] | None
) -> list[dg.AssetCheckSpec]:
    """Return the checks, by partition: one partition's pass must not cover another's failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # of partitions_def
        return [
            dg.AssetCheckSpec(
                c.name,
                asset=key,
                blocking=True,
                description=c.description,
                partitions_def=partitions_def,
            )
            for c in page.checks
        ]


def run_asset(
    context: dg.AssetExecutionContext,
    access: Access,
    page: Page,
    asked: Callable[[Pipeline], Stage],
) -> dg.MaterializeResult:
    """Run the stage that ``asked`` builds from the pipeline as the experiment file stands now."""
    pipeline, tracker = access.open(context)
    return run_stage(context, pipeline, asked, tracker, page)


def run_stage(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    asked: Callable[[Pipeline], Stage],
    tracking: Tracker,
    page: Page,
) -> dg.MaterializeResult:
    """Run one stage under its own MLflow run and return what Dagster stores of it.

    ``asked`` is a function: building the stage can find fault with the launchpad's values.

    Raises
    ------
    dagster.Failure
        For a permanent error, with the message and the remedy, without retries.
    dagster.RetryRequested
        For a transient one.
    """
    with _permanent():
        stage = asked(pipeline)
    parent = _parent(context, tracking)
    # the partition first: MLflow's tables cut long names off at the end
    name = f"{stage.partition} · {stage.asset}" if stage.partition else stage.asset
    name = f"{name} · {context.run.run_id[:8]}"
    tags = _tags(context, stage, tracking.dagster_url)
    with _permanent(), tracking.asset_run(parent, name, tags) as run:
        run.params(stage.settings)
        reporter = Reporter(
            stage.title,
            stage.unit,
            emit=context.log.info,
            stretch=_STRETCH,
            metrics=lambda figures, step: run.metrics(
                {f"progress/{k}": v for k, v in figures.items()}, step
            ),
        )
        manifest = _make(stage, reporter)
        stage.note(
            asked_by=asked_by(context.run.tags),
            dagster_run=context.run.run_id,
            mlflow_run=run.run_id or "",
        )
        drawn = _pictures(stage, manifest, page)
        _track(run, stage, manifest, page, drawn)
        checks = [_check(context, c, stage, manifest) for c in page.checks]
        run.tags({f"check.{c.check_name}": "passed" if c.passed else "FAILED" for c in checks})
        _save_comparison(context, stage, tracking, run)
    metadata: Metadata = {}
    if remark := stage.remark():
        metadata["what_if"] = dg.MetadataValue.text(remark)
    if tracking.enabled and run.run_id is None:
        metadata["not_tracked"] = dg.MetadataValue.text(tracking.not_tracked)
    if run.url is not None:  # first: it stands above the tables and plots
        metadata["mlflow_run"] = dg.MetadataValue.url(run.url)
        metadata.update({name: dg.MetadataValue.url(link) for name, link in run.links.items()})
    metadata.update(base_metadata(manifest, stage.folder, page.data_file, stage.address))
    metadata.update(page.describe(stage, manifest))
    metadata.update({f"plot_{n.replace('-', '_')}": picture(png, n) for n, png in drawn.items()})
    if not all(check.passed for check in checks):
        # what a check refused is no valid artefact for a later run either
        (stage.folder / MANIFEST).replace(stage.folder / REFUSED)
    return dg.MaterializeResult(
        asset_key=context.asset_key,
        data_version=dg.DataVersion(manifest.digest),
        metadata=metadata,
        check_results=checks,
    )


def _pictures(stage: Stage, manifest: Manifest, page: Page) -> dict[str, bytes]:
    """Return the stored and the drawn PNGs of an artefact by name."""
    stored = {path.stem: path.read_bytes() for path in sorted(stage.folder.glob("*.png"))}
    return {**stored, **page.pictures(stage, manifest)}


def _track(
    run: TrackedRun, stage: Stage, manifest: Manifest, page: Page, drawn: dict[str, bytes]
) -> None:
    # what is particular to the stage first: MLflow's plots begin with what came first
    page.track(run, stage, manifest)
    measured, constants = split_constants(page.metrics(stage, manifest))
    run.metrics(measured)
    run.params({"made_with": constants} if constants else {})
    if (planned := planned_seconds(stage)) is not None:
        run.metrics({"cost/planned_seconds": planned})
    for name, png in drawn.items():
        run.figure(png, name)
    record_manifest(run, manifest, stage.folder)
    if stage.address is not None:
        run.tags({"storage": stage.address})


@contextlib.contextmanager
def _permanent() -> Iterator[None]:
    """Turn what the user must mend into a failure that is not tried again."""
    try:
        yield
    except PassingError:
        raise  # it is tried again
    except UserError as error:
        raise dg.Failure(
            description=str(error), metadata={"remedy": error.hint or "-"}, allow_retries=False
        ) from error
    except (OSError, MemoryError, RuntimeError) as error:
        if (lacking := of_the_machine(error)) is None:
            raise
        raise dg.Failure(
            description=str(lacking), metadata={"remedy": lacking.hint}, allow_retries=False
        ) from error


def _make(stage: Stage, reporter: Reporter) -> Manifest:
    end_with_parent()
    try:
        with _permanent():
            return stage.run(reporter)
    except _TRANSIENT as error:
        raise dg.RetryRequested(max_retries=_RETRIES, seconds_to_wait=_RETRY_SECONDS) from error


def _save_comparison(
    context: dg.AssetExecutionContext, stage: Stage, tracking: Tracker, run: TrackedRun
) -> None:
    """Save a link that compares this run with its like: other partitions, or earlier runs.

    It stands on the asset's page, with the Dagster run as a tag, and in the description of
    its parent in MLflow.
    """
    tracking.supersede(stage.asset, stage.partition, run)
    link = run.links.get("mlflow_comparison") or tracking.comparison_link(stage.asset, run)
    if link is None:
        return
    run.links["mlflow_comparison"] = link
    context.instance.add_run_tags(context.run.run_id, {"mlflow/comparison": link})
    tracking.remember_comparison(context.run.run_id, stage.asset, link)


def _tags(context: dg.AssetExecutionContext, stage: Stage, address: str) -> dict[str, str]:
    tags = {
        "dagster.run_id": context.run.run_id,
        "dagster.asset_key": context.asset_key.to_user_string(),
        "dagster.attempt": str(context.retry_number + 1),
        "code_version": str(context.assets_def.code_versions_by_key.get(context.asset_key) or ""),
        "asset": stage.asset,
        "mlflow.note.content": _way_back(context, address),
    }
    if stage.partition:
        tags["dagster.partition"] = stage.partition
    for name in ("arm", "seed"):
        if isinstance(value := stage.settings.get(name), str | int):
            tags[name] = str(value)
    return tags


def _way_back(context: dg.AssetExecutionContext, address: str) -> str:
    """Return the run's description in MLflow: links to the Dagster run and to the asset."""
    asset = "/".join(context.asset_key.path)
    return (
        f"[Dagster run {context.run.run_id[:8]}]({address}/runs/{context.run.run_id}), "
        f"[Dagster asset {asset}]({address}/assets/{asset})"
    )


def _parent(context: dg.AssetExecutionContext, tracking: Tracker) -> str | None:
    """Return the parent MLflow run of this Dagster run and link the two."""
    run = context.run
    what = run.tags.get("selectit/what") or _launched(run)
    known = run.tags.get("mlflow/run_id")
    if known:
        return known
    tags = {
        "dagster.job": run.job_name,
        "selectit.launch": run.tags.get("selectit/launch", ""),
        "mlflow.note.content": f"[Dagster run {run.run_id[:8]}]"
        f"({tracking.dagster_url}/runs/{run.run_id})",
    }
    parent = tracking.parent(run.run_id, f"{what} · {run.run_id[:8]}", tags)
    if parent is not None:
        link = tracking.link(parent)
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


def _check(
    context: dg.AssetExecutionContext, check: Check, stage: Stage, manifest: Manifest
) -> dg.AssetCheckResult:
    found = check.look(stage, manifest)
    return dg.AssetCheckResult(
        asset_key=context.asset_key,
        check_name=check.name,
        passed=found.passed,
        description=found.message,
        metadata=found.facts,
        severity=dg.AssetCheckSeverity.ERROR,
    )
