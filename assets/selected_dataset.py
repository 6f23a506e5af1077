"""Selected dataset: the chosen subset of each arm, SelectIT's and those it competes with."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import (
    Made,
    check,
    inspection,
    record_ids,
)
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, lineage, tables
from selectit_dagster.orchestration.launchpad import Launch, changed, selection_fields
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset, log_dataset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun
from selectit_dagster.selection.difference import moved_rows
from selectit_dagster.selection.history import History

_COLUMNS = ("record_id", "instruction", "input", "response")


class SelectedDataset(StageAsset):
    """Write the dataset that an arm chose, best first, in the format it came in.

    Partition `selectit` is SelectIT's own choice. The others are what it has to beat:
    random draws, the longest responses, everything. Each folder holds the data as they
    were read, `dataset.parquet`, a dataset card and a manifest; `load_dataset` reads it.
    """

    group = asset_keys.SELECTION
    kinds = asset_keys.DATASET_KINDS
    data_file = "dataset.parquet"
    deps: Sequence[str | dg.AssetDep] = (asset_keys.CURATED, asset_keys.RANKING)

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        self.name = pipeline.selected_asset
        self.partitions = [*pipeline.arms]
        self.config = selection_fields(self.experiment, access)
        self.loads_model = any(arm.runs_model for arm in self.experiment.selection.arms)

    def stage(self, asked: Asked) -> Stage:
        """Choose the arm's subset, or try one beside it where settings were changed."""
        overrides = changed(asked.config, self.experiment)
        if overrides.given():
            return asked.pipeline.what_if(asked.partition, overrides)
        return asked.pipeline.selected(asked.partition)

    @check("the subset has the size that was asked for, without repeats")
    def subset_of_the_right_size(self, made: Made) -> dg.AssetCheckResult:
        """Count the records."""
        rows, ids, twice = record_ids(made.folder / "dataset.parquet")
        wanted = made.counts["selected"]
        return inspection(
            rows == ids == wanted and rows > 0,
            f"{rows:,} records, {ids:,} ids; asked for {wanted:,}",
            twice,
            "more than once",
            rows=rows,
            asked_for=wanted,
        )

    def _history(self, made: Made) -> History:
        return self.pipeline.history(made.stage.partition or self.pipeline.production_arm)

    def _explorer(self, made: Made) -> Path:
        """Return the page on which people look into the selection, written where need be."""
        from selectit_dagster.report.explorer import EXPLORER, write_explorer

        arm = made.stage.partition or self.pipeline.production_arm
        folder = self.home.explorer(arm)
        write_explorer(self.pipeline.explorer(arm), folder)
        return folder / EXPLORER

    def other_values(self, made: Made) -> list[Launch]:
        """Offer half and twice the size that was asked for, and any other."""
        rule, size = self.experiment.selection.size
        whole = int if rule in ("count", "tokens") else float
        more = min(2 * size, 1.0) if rule == "share" else 2 * size
        near = () if rule == "threshold" else (whole(size / 2), whole(more))
        sizes = {f"{rule} {v:,}": v for v in near if v not in (0, size)}
        sizes[f"another {rule}"] = whole(size)
        job, asset = (
            self.access.name("write_subsets"),
            self.access.key(self.pipeline.selected_asset),
        )
        arm = made.stage.partition or self.pipeline.production_arm
        return [Launch(words, job, arm, asset, {rule: value}) for words, value in sizes.items()]

    def describe(self, made: Made) -> Metadata:
        """Show the versions, what the newest changed, the dataset card, and the facts."""
        history = self._history(made)
        shown: Metadata = {
            "version": dg.MetadataValue.text(history.said()),
            "explorer_file": dg.MetadataValue.path(str(self._explorer(made))),
            **tables(versions=history.rows()),
        }
        change = history.current.change if history.current is not None else None
        if change is not None:
            shown["change"] = dg.MetadataValue.text(change["text"])
            shown |= tables(entered_and_left=moved_rows(change))
            shown["change_from_the_version_before"] = dg.MetadataValue.json(change)
        shown |= tables(quota=made.details.get("quota"))
        if (card := made.folder / "README.md").exists():
            text = card.read_text(encoding="utf-8")
            body = text.split("---\n", 2)[-1] if text.startswith("---") else text
            shown["dataset_card"] = dg.MetadataValue.md(body[:8000])
        source, ranking = map(self.access.key, (asset_keys.CURATED, asset_keys.RANKING))
        columns = {name: [(source, name)] for name in _COLUMNS}
        columns |= {name: [(ranking, name)] for name in ("rank", "score")}
        return {
            **shown,
            "selection": dg.MetadataValue.json(made.details),
            "dagster/column_lineage": lineage(columns),
        }

    def pictures(self, made: Made) -> dict[str, bytes]:
        """Draw what was chosen and what was not, for the production arm: it reads every record."""
        from selectit_dagster.selection import selection_plots as plots

        if made.stage.partition not in (None, self.pipeline.production_arm):
            return {}
        curated, ranking = self.home.curated, self.home.ranking
        return {
            "selected_and_rejected": plots.score_histogram(ranking, made.folder),
            "length_against_score": plots.length_against_score(curated, ranking, made.folder),
        }

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log the dataset, the page to look into it, every version, and what the newest changed."""
        history, explorer, keeper = self._history(made), self._explorer(made), run.run_id
        if made.stage.partition is not None:
            run.artifact(explorer)
        elif history.current is not None:  # the production dataset is a partition's
            keeper = history.current.mlflow_run
        if keeper and (page := run.tracker.link(keeper, explorer.name)) is not None:
            run.links["explorer"] = page
        log_dataset(run, made, "selected")
        for v in history.state.versions:
            change = {f"version.{n}": v.change[n] for n in ("kept", "entered", "left") if v.change}
            run.metrics({"version.records": v.selected, **change}, v.number)
        version = history.current
        if version is not None:
            run.tags({"version": version.name})
            if version.change is not None:
                run.tags({"change": version.change["text"]})
                run.tables({"entered_and_left.json": moved_rows(version.change)})
