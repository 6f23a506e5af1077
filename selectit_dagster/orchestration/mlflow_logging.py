"""What several assets log to their MLflow runs: dataset inputs, tables, the view of the arms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.manifest import Manifest, read_manifest
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun
from selectit_dagster.orchestration.tracking.tracked_run import ARM_ROWS


def log_input(run: TrackedRun, folder: Path, name: str, context: str) -> None:
    """Log a stored dataset as an input, by its digest; ``context`` says what it is for."""
    source = read_manifest(folder)
    if source is not None:
        known = ("selected", "kept", "questions")
        rows = next((source.counts[key] for key in known if key in source.counts), 0)
        run.dataset(name, source.digest, folder, rows, context)


def log_dataset(run: TrackedRun, stage: Stage, context: str) -> None:
    """Log the stage's own dataset with its digest, and the records that it left out."""
    name = f"{stage.asset}-{stage.partition}" if stage.partition else stage.asset
    log_input(run, stage.folder, name, context)
    for file in ("rejected.jsonl", "dropped.jsonl", "README.md"):
        if (stage.folder / file).exists():
            run.artifact(stage.folder / file)


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns by name, those of the first row."""
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}


def save_arms_view(run: TrackedRun, benchmarks: list[str]) -> None:
    """Save the view of MLflow's page that has one row per arm, one column per benchmark."""
    columns = [
        f"metrics.{n}{end}" for n in benchmarks for end in ("", ".lower", ".upper", ".difference")
    ]
    if run.run_id is None:
        return
    if (view := run.tracker.save_view("arms", ARM_ROWS, columns)) is not None:
        run.links["mlflow_arms"] = view


def no_metrics(stage: Stage, manifest: Manifest) -> dict[str, float]:
    """Return nothing: the asset logs its figures itself."""
    return {}
