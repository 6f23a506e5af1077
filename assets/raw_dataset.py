"""Raw dataset: every record of the source, read once, each kept or named with its reason."""

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import (
    Made,
    check,
    inspection,
    record_ids,
)
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, first_lines, tables
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset, log_dataset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun


class RawDataset(StageAsset):
    """Read the instruction dataset as it is.

    Materialise this after the source has changed. A record that cannot be used is in
    `rejected.jsonl` with its position, field and reason; above the experiment's
    `dataset.max_reject_share` the run stops here, before any model is loaded.
    """

    name = asset_keys.RAW
    group = asset_keys.DATA
    kinds = asset_keys.DATASET_KINDS
    data_file = "records.parquet"

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        source = self.experiment.dataset
        self.more = {"metadata": {"source": source.path, "license": source.license}}

    def stage(self, asked: Asked) -> Stage:
        """Read the source."""
        return asked.pipeline.raw()

    @check("read = kept + rejected, and every record id occurs once")
    def balance(self, made: Made) -> dg.AssetCheckResult:
        """Compare the counts with the rows."""
        read, kept, rejected = (made.counts[name] for name in ("read", "kept", "rejected"))
        rows, ids, twice = record_ids(made.folder / "records.parquet")
        return inspection(
            read == kept + rejected and rows == ids == kept,
            f"read {read:,} = kept {kept:,} + rejected {rejected:,}; {rows:,} rows, {ids:,} ids",
            twice,
            "more than once",
            rows=rows,
            distinct_ids=ids,
        )

    def describe(self, made: Made) -> Metadata:
        """Show rejected records and the data profile."""
        return {
            **tables(
                rejected=first_lines(made.folder / "rejected.jsonl"),
                columns=made.details.get("columns"),
            ),
            **profile_tables(made.manifest),
            "profile": dg.MetadataValue.json(made.details),
        }

    def pictures(self, made: Made) -> dict[str, bytes]:
        """Draw the profile."""
        return profile_pictures(made.manifest)

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log the dataset."""
        log_dataset(run, made, "raw")


def profile_tables(manifest: Manifest) -> Metadata:
    """Return the profile of a dataset as tables."""
    from selectit_dagster.data.profile import length_table, share_table

    profile = manifest.details.get("profile")
    if not profile or not manifest.counts["kept"]:
        return {}
    return tables(lengths=length_table(profile), languages_inputs_turns=share_table(profile))


def profile_pictures(manifest: Manifest) -> dict[str, bytes]:
    """Draw the profile of a dataset."""
    from selectit_dagster.data import dataset_plots

    profile = manifest.details.get("profile")
    if not profile or not manifest.counts["kept"]:
        return {}
    return {
        "lengths": dataset_plots.lengths_plot(profile),
        "languages_inputs_turns": dataset_plots.shares_plot(profile),
    }
