"""Sensitivity: how much the choice depends on the settings, and whether it is stable."""

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Made
from selectit_dagster.orchestration.asset_metadata import Metadata, tables
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset
from selectit_dagster.orchestration.stages.stage import Stage


class Sensitivity(StageAsset):
    """Show how much the chosen set depends on α, K, single models and the variant.

    Overlap and rank correlation with the ranking as it is, from the stored scores
    alone, and whether the set is more stable under resampled prompts than chance.
    """

    name = asset_keys.SENSITIVITY
    group = asset_keys.SELECTION
    deps = (asset_keys.RANKING,)

    def stage(self, asked: Asked) -> Stage:
        """Vary the settings of the ranking."""
        return asked.pipeline.sensitivity()

    def describe(self, made: Made) -> Metadata:
        """Show the plain sentence and the table of other settings."""
        return {
            "in_words": dg.MetadataValue.text(str(made.details.get("sentence", ""))),
            **tables(other_settings=made.details.get("settings")),
        }
