"""Fused ranking: the models' scores become one order of the records."""

from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field, field_validator

from selectit_dagster.artefacts.accounting import Account, RecordsLostError
from selectit_dagster.artefacts.manifest import Manifest, require_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.experiment import Experiment
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Check, Inspection, inspection, query
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, details, lineage
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.orchestration.stages.stage import Stage

# the launchpad offers the members and refuses anything else before the run starts
Variant = Enum("Variant", {"paper": "paper", "released-code": "released-code"})
Ablation = Enum("Ablation", {"none": "none", "sentence-r": "sentence-r", "model-r": "model-r"})


def config_type(experiment: Experiment) -> type[dg.Config]:
    """Return what a launchpad run may change; nothing of it needs a model."""
    known = experiment.rating.num_prompts
    names = [model.name for model in experiment.scoring_models]

    class RankingConfig(dg.Config):
        """Settings that stand in for the experiment file's in this run."""

        alpha: float | None = Field(
            None,
            ge=0,
            le=100,
            description="α, the weight of the disagreement between prompts: 0 to 100; "
            f"the file says {experiment.rating.alpha}",
        )
        num_prompts: int | None = Field(
            None,
            ge=1,
            le=known,
            description=f"K: use the first K of the {known} prompts that were scored",
        )
        variant: Variant | None = Field(
            None, description="the paper's formulas (`paper`) or the authors' (`released-code`)"
        )
        ablation: Ablation | None = Field(
            None, description="what goes into the next level: `none`, `sentence-r`, `model-r`"
        )
        models: list[str] | None = Field(
            None, min_length=1, description=f"fuse only these models; of {', '.join(names)}"
        )
        thetas: dict[str, float] | None = Field(
            None, description=f"fusion weights, above 0, by model: of {', '.join(names)}"
        )

        @field_validator("models", "thetas")
        @classmethod
        def _known(cls, value: Any) -> Any:  # noqa: ANN401 - names, alone or with their weights
            if unknown := sorted(set(value or ()) - set(names)):
                raise ValueError(f"no scoring model {', '.join(unknown)}; there are {names}")
            return value

    return RankingConfig


def overrides(config: Any) -> Overrides:  # noqa: ANN401 - the class is made per experiment
    """Return the values that were given in the launchpad."""
    return Overrides(
        alpha=config.alpha,
        num_prompts=config.num_prompts,
        variant=config.variant and config.variant.value,
        ablation=config.ablation and config.ablation.value,
        models=tuple(config.models) if config.models is not None else None,
        thetas=tuple(config.thetas.items()) if config.thetas else None,
    )


def build(experiment: Experiment, access: Access) -> dg.AssetsDefinition:
    """Return the asset that fuses the stored scores."""
    RankingConfig = config_type(experiment)  # noqa: N806 - a class
    page = page_of(access)

    @stage_asset(
        access,
        asset_keys.RANKING,
        page,
        deps=[
            asset_keys.CURATED,
            *(asset_keys.scores_name(model.name) for model in experiment.scoring_models),
        ],
        group=asset_keys.RATING,
        kinds={"parquet", "python"},
    )
    def ranking(
        context: dg.AssetExecutionContext,
        config: RankingConfig,  # type: ignore[valid-type]
    ) -> dg.MaterializeResult:
        """Fuse the models' stored distributions into one score and one order.

        Token level, sentence level (the disagreement between prompts, weighted by α) and
        model level (weighted by parameter counts) of SelectIT. Nothing is scored again:
        try another α, number of prompts, variant, weights or set of models from the launchpad
        in seconds.
        """
        return run_asset(
            context, access, page, lambda pipeline: pipeline.ranking(overrides(config))
        )

    return ranking


def page_of(access: Access) -> Page:
    """Return what a person sees of the asset."""
    return Page(
        data_file="ranking.parquet",
        checks=CHECKS,
        describe=lambda stage, manifest: _describe(access, stage, manifest),
    )


def _every_record(stage: Stage, manifest: Manifest) -> Inspection:
    """Kept = ranked + too_long + failed, and the ranks are 1 to n without gaps."""
    home = stage.folder.parent
    records = str(home / "curated" / "records.parquet")
    kept = query("select count(*) from read_parquet(?)", records)[0][0]
    rows, ranked, distinct, top = query(
        "select count(*), count(rank), count(distinct rank), coalesce(max(rank), 0) "
        "from read_parquet(?)",
        str(stage.folder / "ranking.parquet"),
    )[0]
    unranked = manifest.counts.get("too_long", 0) + manifest.counts.get("failed", 0)
    passed = kept == rows == ranked + unranked and ranked == distinct == top and ranked > 0
    try:
        raw, curated = (require_manifest(home / n, made_by=n).counts for n in ("raw", "curated"))
        message = "; ".join(Account.of(raw, curated, manifest.counts).lines())
    except (ArtefactError, RecordsLostError) as error:
        passed, message = False, str(error)
    return inspection(passed, message, kept=kept, ranked=ranked, unranked=unranked)


def _finite_scores(stage: Stage, manifest: Manifest) -> Inspection:
    ranked, bad, extra = query(
        """
        select count(rank),
               count(*) filter (rank is not null and not coalesce(isfinite(score), false)),
               count(*) filter (rank is null and score is not null)
        from read_parquet($1)
        """,
        str(stage.folder / "ranking.parquet"),
    )[0]
    return inspection(
        bad == 0 and extra == 0,
        f"{ranked:,} ranked; {bad:,} without a finite score, {extra:,} unranked with a score",
        ranked=ranked,
        not_finite=bad,
        unranked_with_score=extra,
    )


CHECKS = (
    Check(
        "every_record_accounted_for",
        "kept = ranked + too_long + failed; ranks are 1 to n without gaps",
        _every_record,
    ),
    Check(
        "finite_scores", "every ranked record has a finite score, no other has one", _finite_scores
    ),
)


def _describe(access: Access, stage: Stage, manifest: Manifest) -> Metadata:
    """Show the score's summary and where the columns come from."""
    scores = [
        (access.key(asset_keys.scores_name(model)), "probabilities")
        for model in stage.settings["models"]
    ]
    columns = {
        "record_id": [(access.key(asset_keys.CURATED), "record_id")],
        **dict.fromkeys(("rank", "score", "sentence_score"), scores),
    }
    return {"fusion": details(manifest), "dagster/column_lineage": lineage(columns)}
