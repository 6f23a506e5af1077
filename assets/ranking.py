"""Fused ranking: the models' scores become one order of the records."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.accounting import Account, RecordsLostError
from selectit_dagster.artefacts.manifest import Manifest, require_manifest
from selectit_dagster.errors import ArtefactError, UserError
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
from selectit_dagster.orchestration.asset_metadata import Metadata, details, lineage
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Progress


def config_schema(experiment: Experiment, access: Access) -> dict[str, dg.Field]:
    """Return what a launchpad run may change, each with its present value; no model is needed.

    The launchpad shows the values of an enumeration and refuses any other before a run starts.
    """
    rating, models = experiment.rating, experiment.scoring_models

    def one_of(name: str, values: Iterable[str]) -> dg.Enum:
        return dg.Enum(access.name(name), [dg.EnumValue(value) for value in values])

    weights = {
        model.name: dg.Field(float, is_required=False, description="above 0")
        if model.theta is None
        else dg.Field(float, default_value=model.theta, description="above 0")
        for model in models
    }
    return {
        "alpha": dg.Field(
            float,
            default_value=rating.alpha,
            description="α, the weight of the disagreement between prompts: 0 to 100",
        ),
        "num_prompts": dg.Field(
            one_of("num_prompts", [str(k) for k in range(1, rating.num_prompts + 1)]),
            default_value=str(rating.num_prompts),
            description="K: the first K of the prompts that were scored",
        ),
        "variant": dg.Field(
            one_of("variant", ("paper", "released-code")),
            default_value=rating.variant,
            description="the paper's formulas or the authors'",
        ),
        "ablation": dg.Field(
            one_of("ablation", ("none", "sentence-r", "model-r")),
            default_value=rating.ablation,
            description="what goes into the next level",
        ),
        "models": dg.Field(
            [one_of("model", [model.name for model in models])],
            default_value=[model.name for model in models],
            description="the models that are fused",
        ),
        "thetas": dg.Field(weights, description="fusion weights; default: parameter counts"),
    }


def overrides(config: Mapping[str, Any], experiment: Experiment) -> Overrides:
    """Return the values of the launchpad that differ from the experiment's."""
    rating, names = experiment.rating, [model.name for model in experiment.scoring_models]
    if not config["models"]:
        raise UserError("no model is left to fuse", hint=f"name one of {', '.join(names)}")
    present = {"num_prompts": str(rating.num_prompts), "models": names}
    values: dict[str, Any] = {
        name: config[name]
        for name in ("alpha", "num_prompts", "variant", "ablation", "models")
        if config[name] != present.get(name, getattr(rating, name, None))
    }
    if "num_prompts" in values:
        values["num_prompts"] = int(values["num_prompts"])
    if "models" in values:
        values["models"] = tuple(values["models"])
    known = {model.name: model.theta for model in experiment.scoring_models}
    thetas = {n: weight for n, weight in config["thetas"].items() if weight != known[n]}
    return Overrides(**values, thetas=tuple(thetas.items()) or None)


def build(experiment: Experiment, access: Access) -> dg.AssetsDefinition:
    """Return the asset that fuses the stored scores."""
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
        config_schema=config_schema(experiment, access),
    )
    def ranking(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Fuse the models' stored distributions into one score and one order.

        Token level, sentence level (the disagreement between prompts, weighted by α) and
        model level (weighted by parameter counts) of SelectIT. Nothing is scored again:
        try another α, number of prompts, variant, weights or set of models from the launchpad
        in seconds.
        """
        given = context.op_execution_context.op_config
        return run_asset(
            context, access, page, lambda now: _asked(now, overrides(given, experiment))
        )

    return ranking


def _asked(pipeline: Pipeline, changed: Overrides) -> Stage:
    """Return the ranking's stage, or one that tries other settings and leaves it as it is."""
    own = pipeline.ranking()
    if not changed.given():
        return own
    tried = pipeline.what_if(pipeline.production_arm, changed)

    def run(progress: Progress) -> Manifest:
        tried.run(progress)
        return require_manifest(own.folder, made_by=own.title)

    settings = {**pipeline.ranking(changed).settings, "what_if": tried.settings["what_if"]}
    return dataclasses.replace(own, run=run, remark=tried.remark, settings=settings)


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
    wrong = query(
        "select record_id from read_parquet(?) k full join read_parquet(?) r using (record_id) "
        "group by record_id having count(k.record_id) != 1 or count(r.record_id) != 1 "
        "order by 1 limit 3",
        records,
        str(stage.folder / "ranking.parquet"),
    )
    message += named("missing, foreign or more than once", [name for (name,) in wrong])
    return inspection(passed and not wrong, message, kept=kept, ranked=ranked, unranked=unranked)


def _finite_scores(stage: Stage, manifest: Manifest) -> Inspection:
    ranked, bad, extra, names = query(
        """
        with r as (select *, rank is not null and not coalesce(isfinite(score), false) as bad,
                          rank is null and score is not null as extra from read_parquet($1))
        select count(rank), count(*) filter (bad), count(*) filter (extra),
               (select list(record_id order by record_id)[:3] from r where bad or extra)
        from r
        """,
        str(stage.folder / "ranking.parquet"),
    )[0]
    return inspection(
        bad == 0 and extra == 0,
        f"{ranked:,} ranked; {bad:,} without a finite score, {extra:,} unranked with a score"
        + named("records", names),
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
