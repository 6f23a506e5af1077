"""Uncertainty scores: one asset per scoring model, its rating of every record."""

import dagster as dg

from selectit_dagster.display import one_line
from selectit_dagster.experiment import ScoringModel
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Made, check, inspection, query
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, lineage
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun
from selectit_dagster.rating.prompts import load_prompts


class UncertaintyScores(StageAsset):
    """What one scoring model makes of every record."""

    group = asset_keys.RATING
    kinds = asset_keys.MODEL_KINDS
    data_file = "*.parquet"
    deps = (asset_keys.CURATED,)
    loads_model = True

    def __init__(self, model: ScoringModel, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        self.model, self.name = model.name, asset_keys.scores_name(model.name)
        self.more = {"metadata": {"model": model.path, "revision": model.revision or "-"}}
        self.description = (
            f"Rate every curated record with **{model.name}** (`{model.path}`) under each rating "
            "prompt.\n\nStores the probabilities of the rating tokens, one row per record and "
            "prompt; token, sentence and model level are arithmetic on them. Materialising again"
            " scores only what is missing: new records, a further prompt. A record that is too"
            " long or that failed is named with its reason and never gets a default score."
        )

    def stage(self, asked: Asked) -> Stage:
        """Rate with the model."""
        return asked.pipeline.scores(self.model)

    @check("every curated record has one row per rating prompt, no others")
    def one_row_per_record_and_prompt(self, made: Made) -> dg.AssetCheckResult:
        """Compare the shards with the curated records."""
        records, missing, foreign, wrong, names = query(
            """
            with r as (select record_id from read_parquet($1)),
                 s as (select record_id, count(*) n, count(distinct prompt_index) k
                       from read_parquet($2) group by 1),
                 m as (select record_id from r anti join s using (record_id)),
                 f as (select record_id from s anti join r using (record_id)),
                 w as (select record_id from s where n != k or n != (select max(k) from s))
            select (select count(*) from r), (select count(*) from m), (select count(*) from f),
                   (select count(*) from w),
                   (select list(record_id order by record_id)[:3]
                    from (from m union all from f union all from w))
            """,
            made.folder.parents[1] / "curated" / "records.parquet",
            made.folder / "*.parquet",
        )[0]
        return inspection(
            missing == foreign == wrong == 0,
            f"{records:,} records; {missing:,} without scores, {foreign:,} scored but not in the "
            f"dataset, {wrong:,} with a wrong number of prompts",
            names,
            records=records,
            missing=missing,
            foreign=foreign,
            wrong_prompts=wrong,
        )

    @check("every stored distribution is finite and sums to one")
    def finite_distributions(self, made: Made) -> dg.AssetCheckResult:
        """Add up every distribution."""
        ok, bad_sum, misplaced, names = query(
            """
            with s as (select record_id, status = 'ok' as ok,
                              not coalesce(abs(list_sum(probabilities::float[]) - 1) < 1e-3, false)
                              as bad,
                              ok != (probabilities is not null) as misplaced
                       from read_parquet($1))
            select count(*) filter (ok), count(*) filter (ok and bad), count(*) filter (misplaced),
                   (select list(distinct record_id order by record_id)[:3] from s
                    where (ok and bad) or misplaced)
            from s
            """,
            made.folder / "*.parquet",
        )[0]
        return inspection(
            bad_sum == 0 and misplaced == 0,
            f"{ok:,} distributions; {bad_sum:,} not finite or not summing to one, {misplaced:,} "
            "present without status ok or absent with it",
            names,
            distributions=ok,
            not_normalised=bad_sum,
            misplaced=misplaced,
        )

    def describe(self, made: Made) -> Metadata:
        """Show the rating tokens, rates and warnings."""
        source = self.access.key(asset_keys.CURATED)
        texts = [(source, column) for column in ("instruction", "input", "response")]
        columns = {"record_id": [(source, "record_id")], "probabilities": texts}
        shown: Metadata = {"model_facts": dg.MetadataValue.json(made.details)}
        if warnings := made.details.get("warnings"):
            lines = [f"- {one_line(warning, 400)}" for warning in warnings]
            shown["warnings"] = dg.MetadataValue.md("\n".join(lines))
        shown["dagster/column_lineage"] = lineage({**columns, "rating_mass": texts})
        return shown

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log the dataset that was rated and the prompts."""
        run.dataset_of(self.home.curated, asset_keys.CURATED, "scoring")
        rating = made.stage.settings["rating"]
        asked = load_prompts(rating["prompts"], rating["num_prompts"], rating["variant"])
        run.prompts(f"{run.tracker.experiment}-rating-prompts", [prompt.text for prompt in asked])
