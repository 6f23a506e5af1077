"""Selected dataset: the chosen subset of each arm, SelectIT's and those it competes with."""

from pathlib import Path

import dagster as dg
from pydantic import Field, model_validator

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Check, Inspection, inspection, query
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, add_table, details, lineage
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import as_columns, log_dataset
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun
from selectit_dagster.selection.previous_selection import last_change, moved

_COLUMNS = ("record_id", "instruction", "input", "response")


class SelectionConfig(dg.Config):
    """Settings that stand in for the experiment file's in this run."""

    share: float | None = Field(
        None, gt=0, le=1, description="share of the curated records: above 0, at most 1"
    )
    count: int | None = Field(None, ge=1, description="number of records instead of a share")
    threshold: float | None = Field(None, description="lowest score instead of a share")
    seed: int | None = Field(
        None, ge=0, le=2**31 - 1, description="another draw; only for a random arm"
    )
    model: str | None = Field(
        None,
        description="scoring model of this arm; only for arms that take a single one",
    )

    @model_validator(mode="after")
    def _one_size(self) -> "SelectionConfig":
        sizes = (self.share, self.count, self.threshold)
        if sum(size is not None for size in sizes) > 1:
            raise ValueError("give one of share, count and threshold, not several")
        return self

    def overrides(self) -> Overrides:
        """Return the values that were given in the launchpad."""
        return Overrides(
            share=self.share,
            count=self.count,
            threshold=self.threshold,
            seed=self.seed,
            model=self.model,
        )


def partitions(pipeline: Pipeline) -> dg.StaticPartitionsDefinition:
    """Return one partition per subset: each arm, and each draw of one that is drawn."""
    return dg.StaticPartitionsDefinition(list(pipeline.arms))


def runs_a_model(pipeline: Pipeline) -> bool:
    """Tell whether any arm loads a model while it selects."""
    return any(arm.runs_model for arm in pipeline.experiment.selection.arms)


def build(pipeline: Pipeline, access: Access) -> dg.AssetsDefinition:
    """Return the asset that writes each arm's subset."""
    page = page_of(pipeline, access)

    @stage_asset(
        access,
        pipeline.selected_asset,
        page,
        deps=[asset_keys.CURATED, asset_keys.RANKING],
        partitions_def=partitions(pipeline),
        group=asset_keys.SELECTION,
        kinds={"huggingface", "parquet"},
        pool=asset_keys.MODEL_POOL if runs_a_model(pipeline) else None,
    )
    def selected_dataset(
        context: dg.AssetExecutionContext, config: SelectionConfig
    ) -> dg.MaterializeResult:
        """Write the dataset that an arm chose, best first, in the format it came in.

        Partition `selectit` is SelectIT's own choice. The others are what it has to beat:
        random draws, the longest responses, everything. Each folder holds the data as they
        were read, `dataset.parquet`, a dataset card and a manifest; `load_dataset` reads it.
        """
        return run_asset(
            context,
            access,
            page,
            lambda pipeline: pipeline.selected(context.partition_key, config.overrides()),
        )

    return selected_dataset


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
            **_describe(stage, manifest),
            "dagster/column_lineage": columns,
        },
        track=_track,
    )


def _size(stage: Stage, manifest: Manifest) -> Inspection:
    path = str(stage.folder / "dataset.parquet")
    rows, ids = query("select count(*), count(distinct record_id) from read_parquet(?)", path)[0]
    said = manifest.counts["selected"]
    return inspection(
        rows == ids == said and rows > 0,
        f"{rows:,} records, {ids:,} ids; asked for {said:,}",
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


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the change since the last selection, the dataset card, and the facts."""
    shown: Metadata = {}
    if (change := last_change(stage.folder)) is not None:
        shown["change"] = dg.MetadataValue.text(change["text"])
        add_table(shown, "entered_and_left", moved(change))
        shown["change_since_last_selection"] = dg.MetadataValue.json(change)
    if (card := _card(stage.folder / "README.md")) is not None:
        shown["dataset_card"] = dg.MetadataValue.md(card)
    shown["selection"] = details(manifest)
    return shown


def _card(path: Path) -> str | None:
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    return (text.split("---\n", 2)[-1] if text.startswith("---") else text)[:8000]


def _track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the dataset and what changed since the last selection."""
    log_dataset(run, stage, "selected")
    if (change := last_change(stage.folder)) is not None:
        run.metrics({f"change.{name}": change[name] for name in ("kept", "entered", "left")})
        run.tags({"change": change["text"]})
        rows = moved(change)
        run.tables({"entered_and_left.json": as_columns(rows)} if rows else {})
