"""Sensitivity: how much the choice depends on the settings, and whether it is stable."""

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, add_table
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.stages.stage import Stage


def build(access: Access) -> dg.AssetsDefinition:
    """Return the asset that varies the settings of the ranking."""

    @stage_asset(
        access,
        asset_keys.SENSITIVITY,
        PAGE,
        deps=[asset_keys.RANKING],
        group=asset_keys.SELECTION,
        kinds={"python"},
    )
    def sensitivity(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Show how much the chosen set depends on α, K, single models and the variant.

        Overlap and rank correlation with the ranking as it is, from the stored scores
        alone, and whether the set is more stable under resampled prompts than chance.
        """
        return run_asset(context, access, PAGE, lambda pipeline: pipeline.sensitivity())

    return sensitivity


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the plain sentence and the table of other settings."""
    sentence = str(manifest.details.get("sentence", ""))
    shown: Metadata = {"in_words": dg.MetadataValue.text(sentence)}
    add_table(shown, "other_settings", list(manifest.details.get("settings", [])))
    return shown


PAGE = Page(describe=_describe)
