"""Curated dataset: duplicates, test questions and records that address the rater taken out."""

import json

import dagster as dg

from selectit_dagster.assets.raw_dataset import profile_pictures, profile_tables
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import (
    Made,
    check,
    inspection,
    query,
    record_ids,
)
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, first_lines, lineage, tables
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset, log_dataset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun

_COLUMNS = ("record_id", "instruction", "input", "response", "position", "raw")


class CuratedDataset(StageAsset):
    """Take out what must not be rated, and say what was taken out and why.

    Exact and near duplicates, records that share an n-gram with a benchmark question,
    empty responses and records whose text addresses the rater. Every step can be
    switched in the experiment's `curation` section; `dropped.jsonl` names each record
    that left. Records that stay leave byte for byte as they came.
    """

    name = asset_keys.CURATED
    group = asset_keys.DATA
    kinds = asset_keys.TABLE_KINDS
    data_file = "records.parquet"

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        questions = [asset_keys.QUESTIONS] if self.experiment.benchmarks else []
        self.deps = [asset_keys.RAW, *questions]

    def stage(self, asked: Asked) -> Stage:
        """Curate the raw dataset."""
        return asked.pipeline.curated()

    @check("read = kept + rejected + duplicate + contaminated; ids occur once")
    def balance(self, made: Made) -> dg.AssetCheckResult:
        """Look whether every raw record was kept or is named among the dropped ones."""
        path = made.folder / "records.parquet"
        rows, ids, _ = record_ids(path)
        with (made.folder / "dropped.jsonl").open("rb") as handle:
            dropped = {str(json.loads(line)["record_id"]) for line in handle}
        source = made.folder.parent / "raw" / "records.parquet"
        gone = "select record_id from read_parquet(?) except select record_id from read_parquet(?)"
        lost = sorted({str(name) for (name,) in query(gone, source, path)} - dropped)
        raw = made.counts["raw"]
        return inspection(
            rows == ids == made.counts["kept"] and raw == rows + len(dropped) and not lost,
            f"raw {raw:,} = kept {rows:,} + dropped {len(dropped):,}; {ids:,} ids",
            lost,
            "neither kept nor dropped",
            rows=rows,
            dropped=len(dropped),
        )

    def describe(self, made: Made) -> Metadata:
        """Show dropped records and the curation's facts."""
        examples = sorted(made.details["examples"].items())
        source = self.access.key(asset_keys.RAW)
        return {
            **tables(
                steps=made.details["steps"],
                examples=[{"step": step, **row} for step, rows in examples for row in rows],
                dropped=first_lines(made.folder / "dropped.jsonl"),
            ),
            **profile_tables(made.manifest),
            "curation": dg.MetadataValue.json(made.details),
            "dagster/column_lineage": lineage({name: [(source, name)] for name in _COLUMNS}),
        }

    def pictures(self, made: Made) -> dict[str, bytes]:
        """Draw the profile, and what each step took out."""
        from selectit_dagster.data import dataset_plots

        drawn = dataset_plots.curation_plot(made.counts, made.details)
        return {**profile_pictures(made.manifest), "curation": drawn}

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log the dataset and what was dropped."""
        log_dataset(run, made, "curated")
