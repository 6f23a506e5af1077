"""Uncertainty scores: one asset per scoring model, its rating of every record."""

from collections.abc import Iterable

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets import curated_dataset, groups
from selectit_dagster.experiment import ScoringModel
from selectit_dagster.orchestration import asset_checks, asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_checks import Inspection
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.resources import Access
from selectit_dagster.orchestration.stages.stage import Stage

PREFIX = "uncertainty_scores"


def asset_name(model: str) -> str:
    """Return a scoring model's name as an asset name: other characters become underscores."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in model)


def key(model: str) -> dg.AssetKey:
    """Return the asset key of one scoring model."""
    return dg.AssetKey([PREFIX, asset_name(model)])


def build(model: ScoringModel, access: Access) -> dg.AssetsDefinition:
    """Return the asset that rates the curated dataset with ``model``."""
    name = model.name
    own_key = key(name)

    @dg.asset(
        key=access.put(own_key),
        deps=[access.put(curated_dataset.KEY)],
        group_name=access.name(groups.RATING),
        kinds={"pytorch", "huggingface"},
        code_version="1",
        required_resource_keys=access.keys,
        pool=groups.MODEL_POOL,
        description=(
            f"Rate every curated record with **{name}** (`{model.path}`) under each rating prompt."
            "\n\nStores the probabilities of the rating tokens, one row per record and prompt;"
            " token, sentence and model level are arithmetic on them. Materialising again"
            " scores only what is missing: new records, a further prompt. A record that is too"
            " long or that failed is named with its reason and never gets a default score."
        ),
        metadata={"model": model.path, "revision": model.revision or "-"},
        check_specs=[
            dg.AssetCheckSpec(
                "one_row_per_record_and_prompt",
                asset=access.put(own_key),
                blocking=True,
                description="every curated record has one row per rating prompt, no others",
            ),
            dg.AssetCheckSpec(
                "finite_distributions",
                asset=access.put(own_key),
                blocking=True,
                description="every stored distribution is finite and sums to one",
            ),
        ],
    )
    def uncertainty_scores(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.scores(name),
            tracker,
            describe=asset_pages.uncertainty_scores,
            inspect=_inspect,
            track=mlflow_logging.track_scores,
        )

    return uncertainty_scores


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield asset_checks.rows_match_records(stage, manifest)
    yield asset_checks.finite_distributions(stage, manifest)
