"""Benchmark evaluations: every checkpoint, and the untuned base model, on every benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Made, check, inspection, query
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, preview, row_count, tables
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun

# of a table in MLflow's page, and of a cell in it
_TABLE_ROWS = 2_000
_TABLE_TEXT = 1_500


class UntunedEvaluation(StageAsset):
    """Evaluate the base model before any tuning, to show what tuning adds at all."""

    name = asset_keys.UNTUNED
    group = asset_keys.EVALUATION
    kinds = asset_keys.MODEL_KINDS
    deps: Sequence[str] = (asset_keys.QUESTIONS,)
    loads_model = True

    def stage(self, asked: Asked) -> Stage:
        """Evaluate the base model."""
        return asked.pipeline.evaluation(None)

    @check("every question has one finite score, or is named as too_long or not_judged")
    def every_question_scored(self, made: Made) -> dg.AssetCheckResult:
        """Look whether every question is there once, and has a score or a reason to have none.

        Questions that did not fit the model's context are ``too_long``; answers that no judge
        compared, or whose pair did not fit the judge, are ``not_judged``. Both are counted in
        the results, and nothing else may lack a score.
        """
        facts = made.details.get("benchmarks", {})
        wrong: list[str] = []
        rows = scored = 0
        for name in facts or made.details.get("scores", {}):
            statuses, ids = _wrong_rows(made.folder / f"{name}.parquet")
            total, counted = sum(statuses.values()), facts.get(name, {})
            wrong += [f"{name}/{one}" for one in ids]
            expected = counted.get("questions", total)
            if total != expected:
                wrong.append(f"{name}: {total} questions instead of {expected}")
            for status in ("too_long", "not_judged"):
                seen, known = statuses.get(status, 0), len(counted.get(status, ()))
                if seen != known:
                    wrong.append(f"{name}: {seen} questions {status} instead of {known}")
            rows, scored = rows + total, scored + statuses.get("ok", 0)
        return inspection(
            not wrong and rows > 0,
            f"{rows:,} questions, {scored:,} with a score",
            wrong,
            "wrong",
            questions=rows,
            scored=scored,
            wrong_questions=len(wrong),
        )

    def describe(self, made: Made) -> Metadata:
        """Show each benchmark's score with its interval and some answers."""
        rows = [
            {
                "benchmark": name,
                "score": f"{entry['score']:.4f}",
                "interval": " to ".join(f"{v:.4f}" for v in entry.get("interval") or []),
                "questions": entry.get("n", ""),
                "metric": entry.get("metric", ""),
            }
            for name, entry in made.details.get("scores", {}).items()
        ]
        files = sorted(made.folder.glob("*.parquet"))
        answers = {f"answers_{path.stem.replace('-', '_')}": preview(path) for path in files}
        return {
            **tables(scores=rows, **answers),
            "dagster/row_count": sum(map(row_count, files)),
        }

    def metrics(self, made: Made) -> dict[str, float]:
        """Return each benchmark's score and its interval, as columns of their own."""
        found: dict[str, float] = {}
        for name, entry in made.details.get("scores", {}).items():
            lower, upper = (entry.get("interval") or [entry["score"]] * 2)[:2]
            found |= {name: entry["score"], f"{name}.lower": lower, f"{name}.upper": upper}
        return found

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log the questions and the answers.

        The Parquet files hold everything; MLflow's page shows tables of all questions, in which
        long prompts are cut to their end.
        """
        run.dataset_of(self.home.folder / "questions", asset_keys.QUESTIONS, "evaluation")
        run.tags({"group": str(made.stage.settings["group"])})
        shown: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(made.folder.glob("*.parquet")):
            run.artifact(path, "answers")
            shown |= _answer_tables(path)
        run.tables(shown)


class BenchmarkEvaluations(UntunedEvaluation):
    """Evaluate one checkpoint on the experiment's benchmarks.

    Every question's prompt, output, extracted answer and score is stored, so that any
    figure can be traced to the answers behind it. Materialise a single partition to
    evaluate one arm and seed again.
    """

    name = asset_keys.EVALUATIONS
    deps = (asset_keys.CHECKPOINTS, asset_keys.QUESTIONS)

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        self.partitions = [*pipeline.units]

    def stage(self, asked: Asked) -> Stage:
        """Evaluate the partition's checkpoint."""
        return asked.pipeline.evaluation(asked.pipeline.units[asked.partition])


def _wrong_rows(path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the number of rows by status, and questions without their score or there twice."""
    statuses = "select status, count(*) from read_parquet(?) group by 1"
    names = query(
        "select question_id from read_parquet(?) group by 1 having count(*) > 1 or bool_or("
        "not coalesce(case when status = 'ok' then isfinite(score::double) "
        "else status in ('too_long', 'not_judged') and score is null end, false)) "
        "order by 1 limit 3",
        path,
    )
    return dict(query(statuses, path)), [name for (name,) in names]


def _answer_tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return a benchmark's answers as tables that a browser can hold, by artefact path."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    parts = range(0, len(rows), _TABLE_ROWS)
    tables = {}
    for number, start in enumerate(parts, start=1):
        part = f"-{number:03d}" if len(parts) > 1 else ""
        tables[f"answers/{path.stem}{part}.json"] = [
            {name: _end_of(value) for name, value in row.items()}
            for row in rows[start : start + _TABLE_ROWS]
        ]
    return tables


def _end_of(value: Any) -> Any:  # noqa: ANN401 - a cell
    """Return a text's end where it is long: the question stands behind the worked examples."""
    if isinstance(value, str) and len(value) > _TABLE_TEXT:
        return "… " + value[-_TABLE_TEXT:]
    return value
