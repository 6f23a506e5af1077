"""Curated dataset: duplicates, test questions and records that address the rater taken out."""

import json

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets.raw_dataset import add_profile, profile_pictures
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
from selectit_dagster.orchestration.asset_metadata import (
    Metadata,
    add_table,
    details,
    first_lines,
    lineage,
)
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import log_dataset
from selectit_dagster.orchestration.stages.stage import Stage

_COLUMNS = ("record_id", "instruction", "input", "response", "position", "raw")


def build(experiment: Experiment, access: Access) -> dg.AssetsDefinition:
    """Return the asset that curates the raw dataset."""
    page = page_of(access)

    @stage_asset(
        access,
        asset_keys.CURATED,
        page,
        deps=[asset_keys.RAW, *([asset_keys.QUESTIONS] if experiment.benchmarks else [])],
        group=asset_keys.DATA,
        kinds={"parquet", "python"},
    )
    def curated_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Take out what must not be rated, and say what was taken out and why.

        Exact and near duplicates, records that share an n-gram with a benchmark question,
        empty responses and records whose text addresses the rater. Every step can be
        switched in the experiment's `curation` section; `dropped.jsonl` names each record
        that left. Records that stay leave byte for byte as they came.
        """
        return run_asset(context, access, page, lambda pipeline: pipeline.curated())

    return curated_dataset


def page_of(access: Access) -> Page:
    """Return what a person sees of the asset."""
    source = access.key(asset_keys.RAW)
    return Page(
        data_file="records.parquet",
        checks=(
            Check(
                "balance",
                "read = kept + rejected + duplicate + contaminated; ids occur once",
                _balance,
            ),
        ),
        pictures=_pictures,
        describe=lambda stage, manifest: {
            **_describe(stage, manifest),
            "dagster/column_lineage": lineage({name: [(source, name)] for name in _COLUMNS}),
        },
        track=lambda run, stage, manifest: log_dataset(run, stage, "curated"),
    )


def _balance(stage: Stage, manifest: Manifest) -> Inspection:
    """Every raw record was kept or is named among the dropped ones."""
    path = str(stage.folder / "records.parquet")
    rows, ids = query("select count(*), count(distinct record_id) from read_parquet(?)", path)[0]
    with (stage.folder / "dropped.jsonl").open("rb") as handle:
        dropped = {str(json.loads(line)["record_id"]) for line in handle}
    source = str(stage.folder.parent / "raw" / "records.parquet")
    gone = "select record_id from read_parquet(?) except select record_id from read_parquet(?)"
    lost = sorted({str(name) for (name,) in query(gone, source, path)} - dropped)
    raw = manifest.counts["raw"]
    return inspection(
        rows == ids == manifest.counts["kept"] and raw == rows + len(dropped) and not lost,
        f"raw {raw:,} = kept {rows:,} + dropped {len(dropped):,}; {ids:,} ids"
        + named("neither kept nor dropped", lost),
        rows=rows,
        dropped=len(dropped),
    )


def _pictures(stage: Stage, manifest: Manifest) -> dict[str, bytes]:
    from selectit_dagster.data import dataset_plots

    drawn = dataset_plots.curation_plot(manifest.counts, manifest.details)
    return {**profile_pictures(stage, manifest), "curation": drawn}


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show dropped records and the curation's facts."""
    shown: Metadata = {}
    by_step = sorted(manifest.details["examples"].items())
    add_table(shown, "steps", manifest.details["steps"])
    add_table(shown, "examples", [{"step": step, **row} for step, rows in by_step for row in rows])
    add_table(shown, "dropped", first_lines(stage.folder / "dropped.jsonl"))
    add_profile(shown, manifest)
    shown["curation"] = details(manifest)
    return shown
