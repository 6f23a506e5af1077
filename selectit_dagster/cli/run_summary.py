"""The summary at the end of a run: what became of every record, and what the arms scored."""

from __future__ import annotations

from selectit_dagster.cli.tables import table_text
from selectit_dagster.comparison.arm_tables import P_VALUES, result_rows
from selectit_dagster.launch.run import RunOutcome
from selectit_dagster.progress import duration
from selectit_dagster.report.report import ReportRequest
from selectit_dagster.report.sections import balance, warnings


def _records(request: ReportRequest) -> list[str]:
    home, made = request.home, request.made
    if (raw := made.get(home.raw)) is None:
        return []
    found = balance(raw, made.get(home.curated), made.get(home.ranking))
    rows = [{"records": name, "number": number} for name, number, _ in found["steps"]]
    rows += [
        {"records": f"selected by {arm}", "number": chosen.counts["selected"]}
        for arm, chosen in request.below("selected").items()
    ]
    layout = raw.details.get("layout")
    notes = [f"  note: {note}" for note in raw.details.get("notes") or []]
    return [
        table_text(rows, f"Records (layout {layout})" if layout else "Records", heads=False),
        *notes,
    ]


def _arms(request: ReportRequest) -> list[str]:
    if (comparison := request.made.get(request.home.comparison)) is None:
        return []
    rows = [
        {name: cell for name, cell in row.items() if name not in P_VALUES}
        for row in result_rows(comparison.details)
    ]
    sentences = comparison.details.get("sentences") or []
    return ["", table_text(rows, "Arms"), "", *(f"  {sentence}" for sentence in sentences)]


def _warnings(request: ReportRequest) -> list[str]:
    lines = [f"  {warning}" for warning in warnings(request)]
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
    request = outcome.pipeline.report_request()
    home, made = request.home, len(outcome.materialised)
    lines = _records(request) + _arms(request) + _warnings(request)
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
