"""Raw dataset: every record of the source, read once, each kept or named with its reason."""

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
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
from selectit_dagster.orchestration.asset_metadata import Metadata, add_table, details, first_lines
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import log_dataset
from selectit_dagster.orchestration.stages.stage import Stage


def build(experiment: Experiment, access: Access) -> dg.AssetsDefinition:
    """Return the asset that reads the experiment's dataset."""

    @stage_asset(
        access,
        asset_keys.RAW,
        PAGE,
        group=asset_keys.DATA,
        kinds={"huggingface", "parquet"},
        metadata={"source": experiment.dataset.path, "license": experiment.dataset.license},
    )
    def raw_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Read the instruction dataset as it is.

        Materialise this after the source has changed. A record that cannot be used is in
        `rejected.jsonl` with its position, field and reason; above the experiment's
        `dataset.max_reject_share` the run stops here, before any model is loaded.
        """
        return run_asset(context, access, PAGE, lambda pipeline: pipeline.raw())

    return raw_dataset


def _balance(stage: Stage, manifest: Manifest) -> Inspection:
    counts = manifest.counts
    path = str(stage.folder / "records.parquet")
    rows, ids = query("select count(*), count(distinct record_id) from read_parquet(?)", path)[0]
    twice = query(
        "select record_id from read_parquet(?) group by 1 having count(*) > 1 order by 1 limit 3",
        path,
    )
    return inspection(
        counts["read"] == counts["kept"] + counts["rejected"] and rows == ids == counts["kept"],
        f"read {counts['read']:,} = kept {counts['kept']:,} + rejected {counts['rejected']:,}; "
        f"{rows:,} rows, {ids:,} ids" + named("more than once", [name for (name,) in twice]),
        rows=rows,
        distinct_ids=ids,
    )


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show rejected records and the data profile."""
    shown: Metadata = {}
    add_table(shown, "rejected", first_lines(stage.folder / "rejected.jsonl"))
    add_table(shown, "columns", manifest.details.get("columns", []))
    add_profile(shown, manifest)
    shown["profile"] = details(manifest)
    return shown


def add_profile(shown: Metadata, manifest: Manifest) -> None:
    """Add the profile of a dataset as tables."""
    from selectit_dagster.data.profile import length_table, share_table

    profile = manifest.details.get("profile")
    if profile and manifest.counts["kept"]:
        add_table(shown, "lengths", length_table(profile))
        add_table(shown, "languages_inputs_turns", share_table(profile))


def profile_pictures(stage: Stage, manifest: Manifest) -> dict[str, bytes]:
    """Draw the profile of a dataset."""
    from selectit_dagster.data import dataset_plots

    profile = manifest.details.get("profile")
    if not profile or not manifest.counts["kept"]:
        return {}
    return {
        "lengths": dataset_plots.lengths_plot(profile),
        "languages_inputs_turns": dataset_plots.shares_plot(profile),
    }


PAGE = Page(
    data_file="records.parquet",
    checks=(Check("balance", "read = kept + rejected, and every record id occurs once", _balance),),
    pictures=profile_pictures,
    describe=_describe,
    track=lambda run, stage, manifest: log_dataset(run, stage, "raw"),
)
