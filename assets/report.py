"""Report of the run: one HTML file that needs no network."""

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Made
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun


class Report(StageAsset):
    """Write the run's report: one HTML file that needs no network.

    What was asked, what became of every record, the scores, the best and the worst
    records, the arms with their intervals, what it cost, and with which versions.
    """

    name = asset_keys.REPORT
    group = asset_keys.VERDICT

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        compared = [asset_keys.COMPARISON] if self.experiment.tuning is not None else []
        chosen = pipeline.selected_asset
        self.deps = [asset_keys.RANKING, asset_keys.SENSITIVITY, chosen, *compared]

    def stage(self, asked: Asked) -> Stage:
        """Write the report."""
        return asked.pipeline.report()

    def describe(self, made: Made) -> Metadata:
        """Show where the report is, what is in it and what it warns of."""
        return {
            "report": dg.MetadataValue.path(str(made.folder / "report.html")),
            "sections": dg.MetadataValue.text(", ".join(made.details["sections"])),
            "warnings": dg.MetadataValue.text("\n".join(made.details["warnings"]) or "none"),
        }

    def metrics(self, made: Made) -> dict[str, float]:
        """Return none: a report measures nothing."""
        return {}

    def track(self, run: TrackedRun, made: Made) -> None:
        """Store the report with the run."""
        run.artifact(made.folder / "report.html")
