"""What each asset logs to its run in MLflow, from the manifest and the stored files.

Must not be here: anything that the engines have not stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.manifest import Manifest, read_manifest
from selectit_dagster.orchestration.asset_runner import Track
from selectit_dagster.orchestration.partitions import group_of
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.previews import pictures, spread_lines
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun, numbers
from selectit_dagster.selection.previous_selection import last_change, moved

# of a training log; the whole of it is an artefact of the run
_STEPS_SHOWN = 500
# of a table, and of a cell in it
_TABLE_ROWS = 2_000
_TABLE_TEXT = 1_500


def track_figures(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the manifest's numbers and the stored pictures."""
    run.metrics(numbers(manifest.details))
    for path in sorted(stage.folder.glob("*.png")):
        run.artifact(path, "plots")
    for name, png in pictures(stage, manifest).items():
        run.figure(png, name)


def track_dataset(context: str) -> Track:
    """Return a function that logs the stage's dataset as an input with its digest."""

    def track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
        name = f"{stage.asset}-{stage.partition}" if stage.partition else stage.asset
        _input(run, stage.folder, name, context)
        for file in ("rejected.jsonl", "dropped.jsonl", "README.md"):
            if (stage.folder / file).exists():
                run.artifact(stage.folder / file)
        track_figures(run, stage, manifest)
        if stage.partition == "selectit" and (change := last_change(stage.folder)) is not None:
            run.metrics({f"change.{name}": change[name] for name in ("kept", "entered", "left")})
            run.tags({"change": change["text"]})
            rows = moved(change)
            run.tables({"entered_and_left.json": _columns(rows)} if rows else {})

    return track


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns by name, those of the first row."""
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}


def _input(run: TrackedRun, folder: Path, name: str, context: str) -> None:
    """Log a stored dataset as an input, by its digest."""
    source = read_manifest(folder)
    if source is not None:
        known = ("selected", "kept", "questions")
        rows = next((source.counts[key] for key in known if key in source.counts), 0)
        run.dataset(name, source.digest, folder, rows, context)


def track_scores(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the scored dataset, rates and rating mass."""
    _input(run, stage.folder.parents[1] / "curated", "curated_dataset", "scoring")
    track_figures(run, stage, manifest)


def track_checkpoint(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the training set, the training log as stepped metrics, and the adapter."""
    arm = str(stage.settings["arm"])
    folder = stage.folder.parents[2] / "selected" / arm
    _input(run, folder, f"selective_alpaca-{arm}", "training")
    run.series(spread_lines(stage.folder / "log.jsonl", _STEPS_SHOWN), "step")
    for name in ("skipped.jsonl", "log.jsonl"):
        if (stage.folder / name).exists():
            run.artifact(stage.folder / name)
    trained = json.loads((stage.folder / "trained_tokens.json").read_text(encoding="utf-8"))
    run.tables({"trained_tokens.json": _columns(trained)})
    details = dict(manifest.details)
    # the series of the steps has the plain name
    details["mean_tokens_per_second"] = details.pop("tokens_per_second", None)
    track_figures(run, stage, replace(manifest, details=details))
    adapter, name = stage.folder / "adapter", f"{arm}-seed-{stage.settings['seed']}"
    tags = {"base": json.dumps(manifest.details.get("base", {}), default=str)[:2000]}
    if adapter.is_dir():
        run.adapter(adapter, name=name, tags=tags)
    else:
        run.full_model(stage.folder / "manifest.json", name=name, tags=tags)


def track_evaluation(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log each benchmark's score as a column of its own, and the answers.

    The Parquet files hold everything; MLflow's page shows tables of all questions, in which
    long prompts are cut to their end.
    """
    questions = stage.folder.parents[2] / "questions"
    _input(run, questions, "benchmark_questions", "evaluation")
    scores = manifest.details.get("scores", {})
    run.tags({"group": group_of(str(stage.settings["arm"]))})
    if (view := _arms_view(run, list(scores))) is not None:
        run.links["mlflow_arms"] = view
    for name, entry in scores.items():
        lower, upper = (entry.get("interval") or [entry["score"]] * 2)[:2]
        run.metrics({name: entry["score"], f"{name}.lower": lower, f"{name}.upper": upper})
    tables: dict[str, dict[str, list[Any]]] = {}
    for path in sorted(stage.folder.glob("*.parquet")):
        run.artifact(path, "answers")
        tables.update(_answer_tables(path))
    run.tables(tables)
    for path in sorted(stage.folder.glob("*.png")):
        run.artifact(path, "plots")


def _arms_view(run: TrackedRun, benchmarks: list[str]) -> str | None:
    """Save the view of MLflow's page that has one row per arm, one column per benchmark."""
    evaluations = "tags.group != '' and tags.current = 'yes'"
    columns = [f"metrics.{n}{end}" for n in benchmarks for end in ("", ".lower", ".upper")]
    return run.tracker.save_view("arms", evaluations, columns, "group") if run.run_id else None


def _answer_tables(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return a benchmark's answers as tables that a browser can hold, by artefact path."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    parts = range(0, len(rows), _TABLE_ROWS)
    tables = {}
    for number, start in enumerate(parts, start=1):
        some = rows[start : start + _TABLE_ROWS]
        columns = {name: [_shortened(row[name]) for row in some] for name in some[0]}
        part = f"-{number:03d}" if len(parts) > 1 else ""
        tables[f"answers/{path.stem}{part}.json"] = columns
    return tables


def _shortened(value: Any) -> Any:  # noqa: ANN401 - a cell
    """Return a text's end where it is long: the question stands behind the worked examples."""
    if isinstance(value, str) and len(value) > _TABLE_TEXT:
        return "… " + value[-_TABLE_TEXT:]
    return value


def track_comparison(pipeline: Pipeline) -> Callable[[TrackedRun, Stage, Manifest], None]:
    """Return a function that logs the comparison and gives the best adapter its alias."""

    def track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
        for path in sorted(stage.folder.iterdir()):
            if path.suffix in {".md", ".json", ".png"} and path.name != "manifest.json":
                run.artifact(path, "comparison")
        benchmarks = [benchmark.name for benchmark in pipeline.experiment.benchmarks]
        if (view := _arms_view(run, benchmarks)) is not None:
            run.links["mlflow_arms"] = view
        # the arms on each benchmark, rather than this comparison beside earlier ones
        if (link := run.tracker.comparison_link("benchmark_evaluations")) is not None:
            run.links["mlflow_comparison"] = link
        champion = manifest.details.get("champion")
        if isinstance(champion, dict) and champion.get("arm") not in (None, "base"):
            run.champion(pipeline.experiment.name, champion_model(champion))

    return track


def champion_model(champion: dict[str, Any]) -> str:
    """Return the logged model's name of the champion's checkpoint.

    From its evaluation's folder, ``<arm>/seed-N``: two random draws may share a training seed.
    """
    folder = Path(champion["evaluation"])
    return f"{folder.parent.name}-{folder.name}"


def track_report(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Store the report with the run."""
    for name in ("report.html", "report.md"):
        if (stage.folder / name).exists():
            run.artifact(stage.folder / name)
