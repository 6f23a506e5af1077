"""Fused ranking: the models' scores become one order of the records."""

import dagster as dg

from selectit_dagster.artefacts.accounting import RecordsLostError, account, account_lines
from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Made, check, inspection, query
from selectit_dagster.orchestration.asset_keys import Access, scores_name
from selectit_dagster.orchestration.asset_metadata import Metadata, lineage
from selectit_dagster.orchestration.launchpad import changed, ranking_fields
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset
from selectit_dagster.orchestration.stages.stage import Stage


class Ranking(StageAsset):
    """Fuse the models' stored distributions into one score and one order.

    Token level, sentence level (the disagreement between prompts, weighted by α) and
    model level (weighted by parameter counts) of SelectIT. Nothing is scored again:
    try another α, number of prompts, variant, weights or set of models from the launchpad
    in seconds.
    """

    name = asset_keys.RANKING
    group = asset_keys.RATING
    kinds = asset_keys.TABLE_KINDS
    data_file = "ranking.parquet"

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        models = [scores_name(model.name) for model in self.experiment.scoring_models]
        self.deps = [asset_keys.CURATED, *models]
        self.config = ranking_fields(self.experiment, access)

    def stage(self, asked: Asked) -> Stage:
        """Rank, or try other settings and leave the ranking as it is."""
        own, overrides = asked.pipeline.ranking(), changed(asked.config, self.experiment)
        if not overrides.given():
            return own
        return asked.pipeline.what_if(asked.pipeline.production_arm, overrides, own)

    @check("kept = ranked + too_long + failed; ranks are 1 to n without gaps")
    def every_record_accounted_for(self, made: Made) -> dg.AssetCheckResult:
        """Compare the ranking with the curated records."""
        home, path = made.folder.parent, made.folder / "ranking.parquet"
        records = home / "curated" / "records.parquet"
        kept = query("select count(*) from read_parquet(?)", records)[0][0]
        rows, ranked, distinct, top = query(
            "select count(*), count(rank), count(distinct rank), coalesce(max(rank), 0) "
            "from read_parquet(?)",
            path,
        )[0]
        unranked = made.counts.get("too_long", 0) + made.counts.get("failed", 0)
        passed = kept == rows == ranked + unranked and ranked == distinct == top and ranked > 0
        try:
            raw, curated = (
                require_manifest(home / name, made_by=name).counts for name in ("raw", "curated")
            )
            message = "; ".join(account_lines(account(raw, curated, made.counts)))
        except (ArtefactError, RecordsLostError) as error:
            passed, message = False, str(error)
        wrong = query(
            "select record_id from read_parquet(?) k full join read_parquet(?) r using (record_id) "
            "group by 1 having count(k.record_id) != 1 or count(r.record_id) != 1 "
            "order by 1 limit 3",
            records,
            path,
        )
        return inspection(
            passed and not wrong,
            message,
            [name for (name,) in wrong],
            "missing, foreign or more than once",
            kept=kept,
            ranked=ranked,
            unranked=unranked,
        )

    @check("every ranked record has a finite score, no other has one")
    def finite_scores(self, made: Made) -> dg.AssetCheckResult:
        """Look at every score."""
        ranked, bad, extra, names = query(
            """
            with r as (select *, rank is not null and not coalesce(isfinite(score), false) as bad,
                              rank is null and score is not null as extra from read_parquet($1))
            select count(rank), count(*) filter (bad), count(*) filter (extra),
                   (select list(record_id order by record_id)[:3] from r where bad or extra)
            from r
            """,
            made.folder / "ranking.parquet",
        )[0]
        return inspection(
            bad == 0 and extra == 0,
            f"{ranked:,} ranked; {bad:,} without a finite score, {extra:,} unranked with a score",
            names,
            ranked=ranked,
            not_finite=bad,
            unranked_with_score=extra,
        )

    def describe(self, made: Made) -> Metadata:
        """Show the score's summary and where the columns come from."""
        key, models = self.access.key, made.stage.settings["models"]
        scores = [(key(scores_name(model)), "probabilities") for model in models]
        columns = {
            "record_id": [(key(asset_keys.CURATED), "record_id")],
            **dict.fromkeys(("rank", "score", "sentence_score"), scores),
        }
        return {
            "fusion": dg.MetadataValue.json(made.details),
            "dagster/column_lineage": lineage(columns),
        }
