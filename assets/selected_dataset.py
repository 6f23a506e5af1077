"""Selected dataset: the chosen subset of each arm, SelectIT's and those it competes with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import Experiment
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import (
    Check,
    Inspection,
    inspection,
    named,
    query,
)
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, add_table, details, lineage
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import as_columns, log_dataset
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.overrides import SIZES, Overrides
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun
from selectit_dagster.selection.difference import moved_rows
from selectit_dagster.selection.history import History

_COLUMNS = ("record_id", "instruction", "input", "response")


def config_schema(experiment: Experiment, access: Access) -> dict[str, dg.Field]:
    """Return what a launchpad run may change; the size that is asked for stands in it."""
    rule, size = experiment.selection.size
    models = [dg.EnumValue(model.name) for model in experiment.scoring_models]
    kinds: dict[str, tuple[type, str]] = {
        "share": (float, "share of the curated records: above 0, at most 1"),
        "count": (int, "number of records: 1 or more"),
        "tokens": (int, "token budget, as the base model counts: 1 or more"),
        "threshold": (float, "lowest score"),
    }
    sizes = {
        name: dg.Field(kind, default_value=kind(size), description=text)
        if name == rule
        else dg.Field(kind, is_required=False, description=f"{text}; instead of the {rule}")
        for name, (kind, text) in kinds.items()
    }
    return {
        **sizes,
        "seed": dg.Field(
            int, is_required=False, description="another draw, 0 to 2147483647; of a drawn arm"
        ),
        "model": dg.Field(
            dg.Enum(access.name("arm_model"), models),
            is_required=False,
            description="scoring model of this arm, where it takes a single one",
        ),
    }


def overrides(config: Mapping[str, Any], experiment: Experiment) -> Overrides:
    """Return the values of the launchpad that differ from the experiment's.

    Raises
    ------
    UserError
        When several sizes are given.
    """
    rule, size = experiment.selection.size
    given = {n: v for n, v in config.items() if v is not None and (n, v) != (rule, size)}
    if len(sizes := [name for name in SIZES if name in given]) > 1:
        raise UserError(
            f"{' and '.join(sizes)} are given, and a subset has one size",
            hint=f"give one of {', '.join(SIZES)}",
        )
    return Overrides(**given)


def partitions(pipeline: Pipeline) -> dg.StaticPartitionsDefinition:
    """Return one partition per subset: each arm, and each draw of one that is drawn."""
    return dg.StaticPartitionsDefinition(list(pipeline.arms))


def runs_a_model(pipeline: Pipeline) -> bool:
    """Tell whether any arm loads a model while it selects."""
    return any(arm.runs_model for arm in pipeline.experiment.selection.arms)


def build(pipeline: Pipeline, access: Access) -> dg.AssetsDefinition:
    """Return the asset that writes each arm's subset."""
    page, experiment = page_of(pipeline, access), pipeline.experiment

    @stage_asset(
        access,
        pipeline.selected_asset,
        page,
        deps=[asset_keys.CURATED, asset_keys.RANKING],
        partitions_def=partitions(pipeline),
        group=asset_keys.SELECTION,
        kinds={"huggingface", "parquet"},
        config_schema=config_schema(experiment, access),
        pool=asset_keys.MODEL_POOL if runs_a_model(pipeline) else None,
    )
    def selected_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Write the dataset that an arm chose, best first, in the format it came in.

        Partition `selectit` is SelectIT's own choice. The others are what it has to beat:
        random draws, the longest responses, everything. Each folder holds the data as they
        were read, `dataset.parquet`, a dataset card and a manifest; `load_dataset` reads it.
        """
        given, arm = context.op_execution_context.op_config, context.partition_key
        return run_asset(
            context, access, page, lambda now: _asked(now, arm, overrides(given, experiment))
        )

    return selected_dataset


def _asked(pipeline: Pipeline, arm: str, overrides: Overrides) -> Stage:
    """Return the arm's own stage, or a what-if beside it where settings were changed."""
    return pipeline.what_if(arm, overrides) if overrides.given() else pipeline.selected(arm)


def page_of(pipeline: Pipeline, access: Access) -> Page:
    """Return the page of a selected set; the production dataset has the same."""
    source, ranking = access.key(asset_keys.CURATED), access.key(asset_keys.RANKING)
    columns = lineage(
        {name: [(source, name)] for name in _COLUMNS}
        | {name: [(ranking, name)] for name in ("rank", "score")}
    )
    arm = pipeline.production_arm
    return Page(
        data_file="dataset.parquet",
        checks=CHECKS,
        # of the production arm alone: they read every record
        pictures=lambda stage, _: _pictures(stage) if stage.partition in (None, arm) else {},
        describe=lambda stage, manifest: {
            **_describe(_history(pipeline, stage), _explorer(pipeline, stage), stage, manifest),
            "dagster/column_lineage": columns,
        },
        track=lambda run, stage, manifest: _track(pipeline, run, stage),
    )


def _history(pipeline: Pipeline, stage: Stage) -> History:
    return pipeline.history(stage.partition or pipeline.production_arm)


def _size(stage: Stage, manifest: Manifest) -> Inspection:
    path = str(stage.folder / "dataset.parquet")
    rows, ids = query("select count(*), count(distinct record_id) from read_parquet(?)", path)[0]
    said = manifest.counts["selected"]
    twice = query(
        "select record_id from read_parquet(?) group by 1 having count(*) > 1 order by 1 limit 3",
        path,
    )
    return inspection(
        rows == ids == said and rows > 0,
        f"{rows:,} records, {ids:,} ids; asked for {said:,}"
        + named("more than once", [name for (name,) in twice]),
        rows=rows,
        asked_for=said,
    )


CHECKS = (
    Check(
        "subset_of_the_right_size",
        "the subset has the size that was asked for, without repeats",
        _size,
    ),
)


def _pictures(stage: Stage) -> dict[str, bytes]:
    """Draw what was chosen and what was not."""
    from selectit_dagster.selection import selection_plots

    home = stage.folder.parents[1]
    curated, ranking = home / "curated", home / "ranking"
    return {
        "selected_and_rejected": selection_plots.score_histogram(ranking, stage.folder),
        "length_against_score": selection_plots.length_against_score(
            curated, ranking, stage.folder
        ),
    }


def _explorer(pipeline: Pipeline, stage: Stage) -> Path:
    """Return the page on which people look into the arm's selection, written where need be."""
    from selectit_dagster.report.explorer import EXPLORER, write_explorer

    arm = stage.partition or pipeline.production_arm
    folder = pipeline.home.explorer(arm)
    write_explorer(pipeline.explorer(arm), folder)
    return folder / EXPLORER


def _describe(history: History, explorer: Path, stage: Stage, manifest: Manifest) -> Metadata:
    """Show the versions, what the newest changed, the dataset card, and the facts."""
    shown: Metadata = {"version": dg.MetadataValue.text(history.said())}
    shown["explorer"] = dg.MetadataValue.path(str(explorer))
    add_table(shown, "versions", history.rows())
    version = history.current
    if version is not None and version.change is not None:
        shown["change"] = dg.MetadataValue.text(version.change["text"])
        add_table(shown, "entered_and_left", moved_rows(version.change))
        shown["change_from_the_version_before"] = dg.MetadataValue.json(version.change)
    add_table(shown, "quota", manifest.details.get("quota") or [])
    if (card := _card(stage.folder / "README.md")) is not None:
        shown["dataset_card"] = dg.MetadataValue.md(card)
    shown["selection"] = details(manifest)
    return shown


def _card(path: Path) -> str | None:
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    return (text.split("---\n", 2)[-1] if text.startswith("---") else text)[:8000]


def _track(pipeline: Pipeline, run: TrackedRun, stage: Stage) -> None:
    """Log the dataset, the page to look into it, every version, and what the newest changed."""
    history = _history(pipeline, stage)
    if stage.asset != asset_keys.PRODUCTION:
        run.artifact(_explorer(pipeline, stage))
    log_dataset(run, stage, "selected")
    rows = [
        {"version.number": v.number, "version.records": v.selected}
        | {f"version.{name}": v.change[name] for name in ("kept", "entered", "left") if v.change}
        for v in history.state.versions
    ]
    run.series(rows, "version.number")
    version = history.current
    if version is not None:
        run.tags({"version": version.name})
    if version is not None and version.change is not None:
        run.tags({"change": version.change["text"]})
        moved = moved_rows(version.change)
        run.tables({"entered_and_left.json": as_columns(moved)} if moved else {})
