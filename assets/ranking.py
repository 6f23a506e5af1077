"""Fused ranking: the models' scores become one order of the records."""

from collections.abc import Iterable

import dagster as dg
from pydantic import Field

from assets import curated_dataset, groups, uncertainty_scores
from selectit_dagster.artefacts import Manifest
from selectit_dagster.experiment import Experiment
from selectit_dagster.platform import inspections, views
from selectit_dagster.platform.inspections import Inspection
from selectit_dagster.platform.pipeline import Overrides, Stage
from selectit_dagster.platform.resources import PipelineResource, TrackingResource
from selectit_dagster.platform.steps import run_stage

KEY = dg.AssetKey("ranking")


class RankingConfig(dg.Config):
    """What a launchpad run may change; nothing here needs a model."""

    alpha: float | None = Field(
        None, ge=0, description="weight of the disagreement between prompts; empty: as in the file"
    )
    num_prompts: int | None = Field(
        None, ge=1, description="K: use the first K of the prompts that were scored"
    )
    variant: str | None = Field(
        None, pattern="^(paper|released-code)$", description="`paper` or `released-code`"
    )
    ablation: str | None = Field(
        None,
        pattern="^(none|sentence-r|model-r)$",
        description="`none`, `sentence-r` or `model-r`",
    )
    thetas: dict[str, float] | None = Field(
        None, description="fusion weight by model name; empty: as in the file"
    )

    def overrides(self) -> Overrides:
        """Return the values that were given."""
        return Overrides(
            alpha=self.alpha,
            num_prompts=self.num_prompts,
            variant=self.variant,
            ablation=self.ablation,
            thetas=tuple(self.thetas.items()) if self.thetas else None,
        )


def build(experiment: Experiment) -> dg.AssetsDefinition:
    """Return the asset that fuses the stored scores."""
    scores = [uncertainty_scores.key(model.name) for model in experiment.scoring_models]

    @dg.asset(
        key=KEY,
        deps=[curated_dataset.KEY, *scores],
        group_name=groups.RATING,
        kinds={"parquet", "python"},
        code_version="1",
        check_specs=[
            dg.AssetCheckSpec(
                "every_record_accounted_for",
                asset=KEY,
                blocking=True,
                description="kept = ranked + too_long + failed; ranks are 1 to n without gaps",
            ),
            dg.AssetCheckSpec(
                "finite_scores",
                asset=KEY,
                blocking=True,
                description="every ranked record has a finite score, no other has one",
            ),
        ],
    )
    def ranking(
        context: dg.AssetExecutionContext,
        config: RankingConfig,
        pipeline: PipelineResource,
        tracking: TrackingResource,
    ) -> dg.MaterializeResult:
        """Fuse the models' stored distributions into one score and one order.

        Token level, sentence level (the disagreement between prompts, weighted by α) and
        model level (weighted by parameter counts) of SelectIT. Nothing is scored again:
        try another α, number of prompts, variant or weights from the launchpad in seconds.
        """
        line = pipeline.pipeline()
        return run_stage(
            context,
            line.ranking(config.overrides()),
            tracking.tracker(line),
            data_file="ranking.parquet",
            describe=views.ranking,
            inspect=_inspect,
            track=views.track_figures,
        )

    return ranking


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield inspections.ranking_balance(stage, manifest)
    yield inspections.finite_scores(stage, manifest)
