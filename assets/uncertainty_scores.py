"""Uncertainty scores: one asset per scoring model, its rating of every record."""

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.display import one_line
from selectit_dagster.experiment import ScoringModel
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import (
    Check,
    Inspection,
    inspection,
    named,
    query,
)
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import (
    Metadata,
    add_table,
    column_schema,
    details,
    lineage,
    preview,
    row_count,
)
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import log_input
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun
from selectit_dagster.rating.prompts import load_prompts


def build(model: ScoringModel, access: Access) -> dg.AssetsDefinition:
    """Return the asset that rates the curated dataset with ``model``."""
    source = access.key(asset_keys.CURATED)
    texts = [(source, column) for column in ("instruction", "input", "response")]
    columns = lineage(
        {"record_id": [(source, "record_id")], "probabilities": texts, "rating_mass": texts}
    )
    page = Page(
        checks=CHECKS,
        describe=lambda stage, manifest: {
            **_describe(stage, manifest),
            "dagster/column_lineage": columns,
        },
        track=_track,
    )

    @stage_asset(
        access,
        asset_keys.scores_name(model.name),
        page,
        deps=[asset_keys.CURATED],
        group=asset_keys.RATING,
        kinds={"pytorch", "huggingface"},
        pool=asset_keys.MODEL_POOL,
        description=(
            f"Rate every curated record with **{model.name}** (`{model.path}`) under each rating "
            "prompt.\n\nStores the probabilities of the rating tokens, one row per record and "
            "prompt; token, sentence and model level are arithmetic on them. Materialising again"
            " scores only what is missing: new records, a further prompt. A record that is too"
            " long or that failed is named with its reason and never gets a default score."
        ),
        metadata={"model": model.path, "revision": model.revision or "-"},
    )
    def uncertainty_scores(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return run_asset(context, access, page, lambda pipeline: pipeline.scores(model.name))

    return uncertainty_scores


def _rows_match_records(stage: Stage, manifest: Manifest) -> Inspection:
    records = str(stage.folder.parents[1] / "curated" / "records.parquet")
    shards = str(stage.folder / "*.parquet")
    expected, missing, foreign, wrong, names = query(
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
        records,
        shards,
    )[0]
    return inspection(
        missing == foreign == wrong == 0,
        f"{expected:,} records; {missing:,} without scores, {foreign:,} scored but not in the "
        f"dataset, {wrong:,} with a wrong number of prompts" + named("records", names),
        records=expected,
        missing=missing,
        foreign=foreign,
        wrong=wrong,
    )


def _finite_distributions(stage: Stage, manifest: Manifest) -> Inspection:
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
        str(stage.folder / "*.parquet"),
    )[0]
    return inspection(
        bad_sum == 0 and misplaced == 0,
        f"{ok:,} distributions; {bad_sum:,} not finite or not summing to one, {misplaced:,} "
        "present without status ok or absent with it" + named("records", names),
        distributions=ok,
        not_normalised=bad_sum,
        misplaced=misplaced,
    )


CHECKS = (
    Check(
        "one_row_per_record_and_prompt",
        "every curated record has one row per rating prompt, no others",
        _rows_match_records,
    ),
    Check(
        "finite_distributions",
        "every stored distribution is finite and sums to one",
        _finite_distributions,
    ),
)


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the rating tokens, rates, warnings and a preview of the distributions."""
    shown: Metadata = {}
    shards = sorted(stage.folder.glob("*.parquet"))
    if shards:
        shown["dagster/column_schema"] = column_schema(shards[0])
        add_table(shown, "preview", preview(shards[0]))
    shown["dagster/row_count"] = sum(map(row_count, shards))
    shown["model_facts"] = details(manifest)
    if warnings := manifest.details.get("warnings") or []:
        shown["warnings"] = dg.MetadataValue.md(
            "\n".join(f"- {one_line(w, 400)}" for w in warnings)
        )
    return shown


def _track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    log_input(run, stage.folder.parents[1] / "curated", asset_keys.CURATED, "scoring")
    rating = stage.settings["rating"]
    asked = load_prompts(rating["prompts"], rating["num_prompts"], rating["variant"])
    run.prompts(f"{run.tracker.experiment}-rating-prompts", [prompt.text for prompt in asked])
