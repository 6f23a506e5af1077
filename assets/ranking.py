"""Fused ranking: the models' scores become one order of the records."""

from collections.abc import Iterable
from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field, field_validator

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets import curated_dataset, groups, uncertainty_scores
from selectit_dagster.experiment import Experiment
from selectit_dagster.orchestration import asset_checks, asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_checks import Inspection
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.resources import Access
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.orchestration.stages.stage import Stage

KEY = dg.AssetKey("ranking")


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
    scores = [uncertainty_scores.key(model.name) for model in experiment.scoring_models]
    RankingConfig = config_type(experiment)  # noqa: N806 - a class

    @dg.asset(
        key=access.put(KEY),
        deps=[access.put(key) for key in (curated_dataset.KEY, *scores)],
        group_name=access.name(groups.RATING),
        kinds={"parquet", "python"},
        code_version="1",
        required_resource_keys=access.keys,
        check_specs=[
            dg.AssetCheckSpec(
                "every_record_accounted_for",
                asset=access.put(KEY),
                blocking=True,
                description="kept = ranked + too_long + failed; ranks are 1 to n without gaps",
            ),
            dg.AssetCheckSpec(
                "finite_scores",
                asset=access.put(KEY),
                blocking=True,
                description="every ranked record has a finite score, no other has one",
            ),
        ],
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
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.ranking(overrides(config)),
            tracker,
            data_file="ranking.parquet",
            describe=asset_pages.ranking,
            inspect=_inspect,
            track=mlflow_logging.track_figures,
        )

    return ranking


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield asset_checks.ranking_balance(stage, manifest)
    yield asset_checks.finite_scores(stage, manifest)
