"""Report of the run: one HTML file that needs no network."""

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import no_metrics
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun


def build(pipeline: Pipeline, access: Access) -> dg.AssetsDefinition:
    """Return the asset that writes the report."""
    deps = [asset_keys.RANKING, asset_keys.SENSITIVITY, pipeline.selected_asset]
    if pipeline.experiment.tuning is not None:
        deps.append(asset_keys.COMPARISON)

    @stage_asset(
        access, asset_keys.REPORT, PAGE, deps=deps, group=asset_keys.VERDICT, kinds={"python"}
    )
    def report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Write the run's report: one HTML file that needs no network.

        What was asked, what became of every record, the scores, the best and the worst
        records, the arms with their intervals, what it cost, and with which versions.
        """
        return run_asset(context, access, PAGE, lambda now: now.report())

    return report


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show where the report is, what is in it and what it warns of."""
    return {
        "report": dg.MetadataValue.path(str(stage.folder / "report.html")),
        "sections": dg.MetadataValue.text(", ".join(manifest.details["sections"])),
        "warnings": dg.MetadataValue.text("\n".join(manifest.details["warnings"]) or "none"),
    }


def _track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Store the report with the run."""
    run.artifact(stage.folder / "report.html")


PAGE = Page(describe=_describe, metrics=no_metrics, track=_track)
