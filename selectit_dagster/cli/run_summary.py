"""The summary at the end of a run: what became of every record, and what the arms scored."""

from __future__ import annotations

from selectit_dagster.artefacts.accounting import Account
from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.cli.tables import table_text
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.run import RunOutcome
from selectit_dagster.progress import duration
from selectit_dagster.report.sections import results


def _records(pipeline: Pipeline) -> list[str]:
    rows = []
    raw, curated = read_manifest(pipeline.home.raw), read_manifest(pipeline.home.curated)
    if raw is not None:
        rows.append(["read", f"{raw.counts['read']:,}"])
        rows.append(["rejected by the reader", f"{raw.counts['rejected']:,}"])
    ranking = read_manifest(pipeline.home.ranking)
    if raw is not None and curated is not None:
        # holds every equation, or says which one does not
        account = Account.of(raw.counts, curated.counts, ranking.counts if ranking else None)
        rows.append(["duplicate", f"{account.duplicate:,}"])
        rows.append(["contaminated", f"{account.contaminated:,}"])
        rows.append(["rejected by curation", f"{account.rejected - raw.counts['rejected']:,}"])
        rows.append(["kept", f"{account.kept:,}"])
    if ranking is not None:
        rows.append(["ranked", f"{ranking.counts['ranked']:,}"])
        rows.append(["too long", f"{ranking.counts.get('too_long', 0):,}"])
        rows.append(["failed", f"{ranking.counts.get('failed', 0):,}"])
    for arm in pipeline.arms:
        chosen = read_manifest(pipeline.home.selected(arm))
        if chosen is not None:
            rows.append([f"selected by {arm}", f"{chosen.counts['selected']:,}"])
    notes = [f"  note: {note}" for note in (raw.details.get("notes") or [])] if raw else []
    layout = raw.details.get("layout") if raw is not None else None
    title = f"Records (layout {layout})" if layout else "Records"
    cells = [{"records": name, "number": value} for name, value in rows]
    return [table_text(cells, title, heads=False), *notes] if rows else []


def _arms(pipeline: Pipeline) -> list[str]:
    comparison = read_manifest(pipeline.home.comparison)
    if comparison is None:
        return []
    columns, rows = results(comparison.details)
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    sentences = comparison.details.get("sentences") or []
    return ["", table_text(cells, "Arms"), "", *(f"  {sentence}" for sentence in sentences)]


def _warnings(pipeline: Pipeline, outcome: RunOutcome) -> list[str]:
    lines = []
    for model in pipeline.experiment.scoring_models:
        scores = read_manifest(pipeline.home.scores(model.name))
        for warning in (scores.details.get("warnings") or []) if scores else []:
            lines.append(f"  {model.name}: {warning}")
    return ["", "Warnings", *lines] if lines else []


def _storage(outcome: RunOutcome) -> list[list[str]]:
    store = outcome.pipeline.store
    if store is None:
        return []
    address = store.address(outcome.pipeline.home.folder)
    return [["of those, fetched", str(len(outcome.fetched))], ["storage", address]]


def _tracking(outcome: RunOutcome) -> str:
    notes = outcome.pipeline.home.mlflow / "tracking-failures.jsonl"
    if outcome.untracked:
        count = len(outcome.untracked)
        return f"NOTHING OF {count} STAGES IS IN MLFLOW, which did not answer; see {notes}"
    return f"{outcome.tracking_failures} MLflow calls failed; they are in {notes}"


def summary(outcome: RunOutcome, ui_command: str) -> str:
    """Return the summary of a run as text for the terminal."""
    pipeline = outcome.pipeline
    home = pipeline.home
    made = len(outcome.materialised)
    lines = _records(pipeline) + _arms(pipeline) + _warnings(pipeline, outcome)
    report = home.report / "report.html"
    places = [
        ["materialised now", f"{made} of {made + len(outcome.current)}"],
        *_storage(outcome),
        ["seconds", f"{outcome.seconds:.1f} ({duration(outcome.seconds)})"],
        ["report", str(report) if report.exists() else "(not made yet)"],
        ["artefacts", str(home.folder)],
        ["Dagster home", str(home.dagster)],
        ["MLflow store", str(home.mlflow)],
        ["web pages", ui_command],
    ]
    if outcome.tracking_failures:
        places.append(["tracking", _tracking(outcome)])  # last: it must not be overlooked
    width = max(len(name) for name, _ in places)
    return "\n".join(["", *lines, "", *(f"  {n.ljust(width)}  {v}" for n, v in places)])
