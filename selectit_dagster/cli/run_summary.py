"""The summary at the end of a run: what became of every record, and what the arms scored."""

from __future__ import annotations

from selectit_dagster.artefacts.accounting import account
from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.cli.tables import table_text
from selectit_dagster.launch.run import RunOutcome
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.progress import duration
from selectit_dagster.report.sections import results


def _records(pipeline: Pipeline) -> list[str]:
    home = pipeline.home
    raw, curated, ranking = (
        read_manifest(folder) for folder in (home.raw, home.curated, home.ranking)
    )
    numbers: dict[str, int] = {}
    if raw is not None:
        numbers |= {"read": raw.counts["read"], "rejected by the reader": raw.counts["rejected"]}
    if raw is not None and curated is not None:
        # holds every equation, or says which one does not
        found = account(raw.counts, curated.counts, ranking.counts if ranking else None)
        numbers |= {
            "duplicate": found["duplicate"],
            "contaminated": found["contaminated"],
            "rejected by curation": found["rejected"] - raw.counts["rejected"],
            "kept": found["kept"],
        }
    if ranking is not None:
        for name in ("ranked", "too_long", "failed"):
            numbers[name.replace("_", " ")] = ranking.counts.get(name, 0)
    for arm in pipeline.arms:
        if (chosen := read_manifest(home.selected(arm))) is not None:
            numbers[f"selected by {arm}"] = chosen.counts["selected"]
    if not numbers:
        return []
    details = raw.details if raw is not None else {}
    title = f"Records (layout {details['layout']})" if details.get("layout") else "Records"
    cells = [{"records": name, "number": number} for name, number in numbers.items()]
    notes = [f"  note: {note}" for note in details.get("notes") or []]
    return [table_text(cells, title, heads=False), *notes]


def _arms(pipeline: Pipeline) -> list[str]:
    comparison = read_manifest(pipeline.home.comparison)
    if comparison is None:
        return []
    columns, rows = results(comparison.details)
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    sentences = comparison.details.get("sentences") or []
    return ["", table_text(cells, "Arms"), "", *(f"  {sentence}" for sentence in sentences)]


def _warnings(pipeline: Pipeline) -> list[str]:
    lines = [
        f"  {model.name}: {warning}"
        for model in pipeline.experiment.scoring_models
        if (scores := read_manifest(pipeline.home.scores(model.name))) is not None
        for warning in scores.details.get("warnings") or []
    ]
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
        return f"NOTHING OF {count} STAGES IS IN MLFLOW: it gave an error or no answer, see {notes}"
    return f"{outcome.tracking_failures} MLflow calls failed; they are in {notes}"


def summary(outcome: RunOutcome, ui_command: str) -> str:
    """Return the summary of a run as text for the terminal."""
    pipeline = outcome.pipeline
    home = pipeline.home
    made = len(outcome.materialised)
    lines = _records(pipeline) + _arms(pipeline) + _warnings(pipeline)
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
