"""Benchmark evaluations: every checkpoint, and the untuned base model, on every benchmark."""

from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets import lora_checkpoints
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import (
    Check,
    Inspection,
    inspection,
    named,
    query,
)
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, add_table, preview, row_count
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import log_input, no_metrics
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun

# of a table in MLflow's page, and of a cell in it
_TABLE_ROWS = 2_000
_TABLE_TEXT = 1_500


def build(pipeline: Pipeline, access: Access) -> list[dg.AssetsDefinition]:
    """Return the evaluation of the checkpoints and that of the untuned base model."""
    shared: dict[str, Any] = {
        "group": asset_keys.EVALUATION,
        "kinds": {"pytorch", "huggingface"},
        "pool": asset_keys.MODEL_POOL,
    }

    @stage_asset(
        access,
        asset_keys.EVALUATIONS,
        PAGE,
        deps=[asset_keys.CHECKPOINTS, asset_keys.QUESTIONS],
        partitions_def=lora_checkpoints.partitions(pipeline),
        **shared,
    )
    def benchmark_evaluations(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Evaluate one checkpoint on the experiment's benchmarks.

        Every question's prompt, output, extracted answer and score is stored, so that any
        figure can be traced to the answers behind it. Materialise a single partition to
        evaluate one arm and seed again.
        """
        return run_asset(
            context, access, PAGE, lambda now: now.evaluation(now.units[context.partition_key])
        )

    @stage_asset(access, asset_keys.UNTUNED, PAGE, deps=[asset_keys.QUESTIONS], **shared)
    def untuned_evaluation(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Evaluate the base model before any tuning, to show what tuning adds at all."""
        return run_asset(context, access, PAGE, lambda now: now.evaluation(None))

    return [benchmark_evaluations, untuned_evaluation]


def _every_question(stage: Stage, manifest: Manifest) -> Inspection:
    """Every question is there once, and has a finite score or a named reason to have none.

    Questions that did not fit the model's context are ``too_long``; answers that no judge
    compared, or whose pair did not fit the judge, are ``not_judged``. Both are counted in the
    results, and nothing else may lack a score.
    """
    facts = manifest.details.get("benchmarks", {})
    wrong: list[str] = []
    rows = scored = 0
    for name in facts or manifest.details.get("scores", {}):
        found, names = _wrong_rows(stage.folder / f"{name}.parquet")
        counted = facts.get(name, {})
        expected = {
            "all": counted.get("questions", sum(found.values())),
            "too_long": len(counted.get("too_long", ())),
            "not_judged": len(counted.get("not_judged", ())),
        }
        seen = {"all": sum(found.values()), **{k: found.get(k, 0) for k in list(expected)[1:]}}
        wrong += [f"{name}/{one}" for one in names]
        wrong += [
            f"{name}: {seen[k]} questions{'' if k == 'all' else f' {k}'} instead of {expected[k]}"
            for k in expected
            if seen[k] != expected[k]
        ]
        rows, scored = rows + seen["all"], scored + found.get("ok", 0)
    return inspection(
        not wrong and rows > 0,
        f"{rows:,} questions, {scored:,} with a score" + named("wrong", wrong),
        questions=rows,
        scored=scored,
        wrong=len(wrong),
    )


def _wrong_rows(path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the number of rows by status, and questions without their score or there twice."""
    statuses = "select status, count(*) from read_parquet(?) group by 1"
    names = query(
        "select question_id from read_parquet(?) group by 1 having count(*) > 1 or bool_or("
        "not coalesce(case when status = 'ok' then isfinite(score::double) "
        "else status in ('too_long', 'not_judged') and score is null end, false)) "
        "order by 1 limit 3",
        str(path),
    )
    return dict(query(statuses, str(path))), [name for (name,) in names]


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show each benchmark's score with its interval and some answers."""
    shown: Metadata = {}
    rows = [
        {
            "benchmark": name,
            "score": f"{entry['score']:.4f}",
            "interval": " to ".join(f"{v:.4f}" for v in entry.get("interval") or []),
            "questions": entry.get("n", ""),
            "metric": entry.get("metric", ""),
        }
        for name, entry in manifest.details.get("scores", {}).items()
    ]
    add_table(shown, "scores", rows)
    files = sorted(stage.folder.glob("*.parquet"))
    for path in files:
        add_table(shown, f"answers_{path.stem.replace('-', '_')}", preview(path))
    shown["dagster/row_count"] = sum(map(row_count, files))
    return shown


def _track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log each benchmark's score as a column of its own, and the answers.

    The Parquet files hold everything; MLflow's page shows tables of all questions, in which
    long prompts are cut to their end.
    """
    log_input(run, stage.folder.parents[2] / "questions", asset_keys.QUESTIONS, "evaluation")
    scores = manifest.details.get("scores", {})
    run.tags({"group": str(stage.settings["group"])})
    for name, entry in scores.items():
        lower, upper = (entry.get("interval") or [entry["score"]] * 2)[:2]
        run.metrics({name: entry["score"], f"{name}.lower": lower, f"{name}.upper": upper})
    tables: dict[str, dict[str, list[Any]]] = {}
    for path in sorted(stage.folder.glob("*.parquet")):
        run.artifact(path, "answers")
        tables.update(_answer_tables(path))
    run.tables(tables)


def _answer_tables(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return a benchmark's answers as tables that a browser can hold, by artefact path."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    parts = range(0, len(rows), _TABLE_ROWS)
    tables = {}
    for number, start in enumerate(parts, start=1):
        some = rows[start : start + _TABLE_ROWS]
        columns = {name: [_end_of(row[name]) for row in some] for name in some[0]}
        part = f"-{number:03d}" if len(parts) > 1 else ""
        tables[f"answers/{path.stem}{part}.json"] = columns
    return tables


def _end_of(value: Any) -> Any:  # noqa: ANN401 - a cell
    """Return a text's end where it is long: the question stands behind the worked examples."""
    if isinstance(value, str) and len(value) > _TABLE_TEXT:
        return "… " + value[-_TABLE_TEXT:]
    return value


PAGE = Page(
    checks=(
        Check(
            "every_question_scored",
            "every question has one finite score, or is named as too_long or not_judged",
            _every_question,
        ),
    ),
    describe=_describe,
    metrics=no_metrics,
    track=_track,
)
