"""What the report shows: rows, pictures and words from manifests and stored files."""

# ruff: noqa: S608 - table expressions come from Workspace.table, which escapes paths
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selectit_dagster.artefacts.accounting import RecordsLostError, account, account_lines
from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.comparison.arm_tables import result_rows
from selectit_dagster.comparison.costs import saving
from selectit_dagster.progress import Progress, duration
from selectit_dagster.report.page import local_name
from selectit_dagster.report.report import ReportRequest
from selectit_dagster.selection.history import History

_SHOWN_RECORDS = 10
Facts = dict[str, Any]


def facts(request: ReportRequest, scratch: Path, progress: Progress) -> Facts:
    """Return what the page's template shows; ``scratch`` is a folder with room to spill."""
    home, experiment = request.home, request.experiment
    newest = max((m.created_at for m in request.made.values()), default="")
    found: Facts = {
        "title": experiment.name,
        "state": newest.replace("T", " ").replace("+00:00", " UTC") or "nothing has been made yet",
        "warnings": warnings(request),
        "experiment": experiment,
        "home": home,
        "production_arm": request.production_arm,
    }
    names = ("raw", "curated", "ranking", "sensitivity", "comparison")
    found |= {name: request.made.get(getattr(home, name)) for name in names}
    with Workspace(scratch) as work:
        makers: list[Callable[[], Facts]] = [
            lambda: _answer(found["comparison"]),
            lambda: _selected(request, work),
            lambda: _asked(request),
            lambda: balance(found["raw"], found["curated"], found["ranking"]),
            lambda: {"extremes": _extremes(request, work)},
            lambda: {"people": _people(request)},
            lambda: _scores(request, found["ranking"]),
            lambda: {"settings": _settings(found["sensitivity"])},
            lambda: _cost(request, found["comparison"]),
            lambda: _versions(request),
        ]
        for number, make in enumerate(makers, 1):
            found |= make()
            progress.update(number, len(makers))
    return found


# --- the answer ---------------------------------------------------------------------------------


def _answer(comparison: Manifest | None) -> Facts:
    if comparison is None:
        return {}
    entries, rows = comparison.details.get("arms", {}), result_rows(comparison.details)
    arms = dict.fromkeys(row["arm"] for row in rows)
    return {
        "sentences": [said for arm in arms if (said := entries[arm].get("sentence"))],
        "results": rows,
        "method": comparison.details.get("method", {}),
    }


def _selected(request: ReportRequest, work: Workspace) -> Facts:
    """Return what each arm selected, how much of it is SelectIT's, and what changed."""
    rows, histories = [], []
    selected = request.below("selected")
    own = request.home.selected(request.production_arm) / "dataset.parquet"
    for arm, manifest in selected.items():
        details, shared = manifest.details, None
        characters = (details.get("response_characters") or {}).get("selected")
        if request.production_arm in selected:
            chosen = request.home.selected(arm) / "dataset.parquet"
            query = (
                f"SELECT count(*) FROM {work.table(chosen)} "
                f"SEMI JOIN {work.table(own)} USING (record_id)"
            )
            shared = work.row(query)[0]
        size, share = manifest.counts["selected"], f"{details.get('share_of_curated', 0):.1%}"
        name = _linked(arm, _explorer(request, arm))
        rule = details.get("describe", "")
        rows.append([name, size, share, round(characters or 0), shared, rule])
        history = History(request.home.history(arm), request.home.selected(arm))
        if len(history.state.versions) > 1:
            histories.append(f"{arm}: {history.said()}")
    explored = any(isinstance(row[0], tuple) for row in rows)
    return {"selected": rows, "histories": histories, "explored": explored}


def _linked(words: str, address: str) -> str | tuple[str, str]:
    return (words, address) if address else words


def _explorer(request: ReportRequest, arm: str, record_id: str = "") -> str:
    """Return the address of an arm's explorer as the report's folder sees it, if it is there."""
    if not (request.home.explorer(arm) / "explorer.html").exists():
        return ""
    mark = f"#{quote(record_id, safe='')}" if record_id else ""
    return f"../explorer/{quote(arm)}/explorer.html{mark}"


# --- what was asked, and what became of the records ---------------------------------------------


def _asked(request: ReportRequest) -> Facts:
    experiment = request.experiment
    return {
        "models": [f"{m.name} ({local_name(m.path)})" for m in experiment.scoring_models],
        "arms": list(request.below("selected")) or [a.name for a in experiment.selection.arms],
        "benchmarks": [f"{b.name} ({b.task}, {b.protocol})" for b in experiment.benchmarks],
    }


def balance(raw: Manifest | None, curated: Manifest | None, ranking: Manifest | None) -> Facts:
    """Return the steps from the source to the ranking, and why records were left out."""
    if raw is None:
        return {}
    found: Facts = {"account": None, "questions": "", "not_ranked": []}
    steps: list[list[Any]] = [["read", raw.counts["read"], ""]]
    steps.append(["rejected while reading", -raw.counts["rejected"], "rejected.jsonl names each"])
    if curated is not None:
        try:
            counts = account(raw.counts, curated.counts, ranking.counts if ranking else None)
            lines = [f"{line[0].upper()}{line[1:]}." for line in account_lines(counts)]
            found["account"] = (" ".join(lines), "lead")
        except RecordsLostError as error:
            found["account"] = (f"The balance does not hold: {error}", "warning")
        for step in curated.details.get("steps", []):
            if step.get("found", 0) or step.get("dropped", 0):
                note = f"found {step.get('found', 0):,}; setting: {step.get('setting', '')}"
                steps.append([step["step"].replace("_", " "), -step.get("dropped", 0), note])
        steps.append(["curated", curated.counts["kept"], ""])
        if (compared := curated.details.get("decontamination") or {}).get("checked"):
            found["questions"] = _counted(compared["questions"])
            found["contaminated"] = _counted(compared["contaminated"]) or "none"
    if ranking is not None:
        for status in ("too_long", "failed"):
            if ranking.counts.get(status):
                steps.append([status.replace("_", " "), -ranking.counts[status], "not ranked"])
        steps.append(["ranked", ranking.counts["ranked"], ""])
        examples = ranking.details.get("not_ranked_examples") or []
        found["not_ranked"] = [[e["record_id"], e["status"], e["reason"]] for e in examples]
    rejects = raw.details.get("rejects") or []
    rows = [[entry["field"], entry["reason"], entry["count"]] for entry in rejects]
    return {**found, "steps": steps, "rejects": rows}


def _counted(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


# --- scores -------------------------------------------------------------------------------------


def _extremes(request: ReportRequest, work: Workspace) -> list[tuple[str, list[Facts]]]:
    """Return the best and the worst records; each opens in the explorer."""
    if request.home.ranking not in request.made:
        return []
    ranking = work.table(request.home.ranking / "ranking.parquet")
    records = work.table(request.home.curated / "records.parquet")
    found = []
    for title, order in (("The best, best first", "ASC"), ("The worst, worst first", "DESC")):
        query = (
            "SELECT r.rank, r.score, record_id AS record, "
            "left(c.instruction, 200) AS instruction, "
            f"left(c.response, 200) AS response FROM {ranking} r JOIN {records} c "
            f"USING (record_id) WHERE r.rank IS NOT NULL ORDER BY r.rank {order} "
            f"LIMIT {_SHOWN_RECORDS}"
        )
        rows = work.rows(query)
        for row in rows:
            address = _explorer(request, request.production_arm, row["record"])
            row["record"] = _linked(row["record"], address)
        found.append((title, rows))
    return found


def _people(request: ReportRequest) -> Facts | str:
    """Return how far people's marks agree with the rater, where there are marks."""
    review, chosen = request.experiment.selection.review, request.below("selected")
    if not review or request.home.ranking not in request.made:
        return {}
    from selectit_dagster.selection.review import agreement, read_review

    size = chosen[request.production_arm].counts["selected"] if chosen else 0
    found = agreement(read_review(Path(review)), request.home.curated, request.home.ranking, size)
    if found is None:
        return "nobody"
    names = {
        "auc": "AUC: a kept record has the higher score",
        "kappa": "κ: keep and drop against in and out",
    }
    measures = [
        [words, *(f"{v:.3f}" for v in found[key])] for key, words in names.items() if found[key]
    ]
    return {
        **found,
        "size": size,
        "measures": measures,
        "missing": [words for key, words in names.items() if not found[key]],
        "rows": [{**kind, "agree": f"{kind['agree']:.0%}"} for kind in found["kinds"]],
    }


def _scores(request: ReportRequest, ranking: Manifest | None) -> Facts:
    """Return the plots that the stages drew, and those over several stages."""
    if ranking is None:
        return {}
    from selectit_dagster.rating import rating_plots
    from selectit_dagster.selection import selection_plots

    home = request.home
    pictures: list[tuple[Path | bytes, str, str]] = []
    chosen = home.selected(request.production_arm)
    if ranking.counts["ranked"] and chosen in request.made:
        parts = selection_plots.score_histogram(home.ranking, chosen)
        lengths = selection_plots.length_against_score(home.curated, home.ranking, chosen)
        warned = "A strong correlation would mean that little else than length is rated."
        pictures.append((parts, "Model level: the fused score", "What is kept, to the right."))
        pictures.append((lengths, "Length against score", warned))
    folders = [(m.name, home.scores(m.name)) for m in request.experiment.scoring_models]
    for name, folder in folders:
        pictures.append((folder / "scores.png", f"{name}: token and sentence level", ""))
        disagree = f"{name}: disagreement between the rating prompts"
        pictures.append((folder / "prompts.png", disagree, ""))
    used = ranking.details.get("parameters", {})
    if len(folders) > 1 and not request.experiment.rating.adaptive and used:
        png = rating_plots.model_disagreement(folders, used["num_prompts"], used["alpha"])
        pictures.append((png, "Disagreement between the models", ""))
    masses = [
        [name, mass.get("mean"), mass.get("p05")]
        for name, manifest in request.below("scores").items()
        if (mass := manifest.details.get("rating_mass"))
    ]
    return {"pictures": pictures, "masses": masses}


def _settings(sensitivity: Manifest | None) -> list[list[str]]:
    rows = sensitivity.details.get("settings", []) if sensitivity is not None else []
    return [
        [row["factor"], str(row["value"]), f"{row['overlap']:.1%}", f"{row['spearman']:.3f}"]
        for row in rows
    ]


# --- what it cost, and with what it was made ----------------------------------------------------


def _cost(request: ReportRequest, comparison: Manifest | None) -> Facts:
    return {
        "saved": saving(comparison.details.get("costs") or []) if comparison is not None else "",
        "scoring": [_scoring_row(name, m) for name, m in request.below("scores").items()],
        "trained": [_tuning_row(name, m) for name, m in request.below("checkpoints").items()],
        "planned": request.planned,
    }


def _scoring_row(name: str, manifest: Manifest) -> list[Any]:
    details, memory = manifest.details, manifest.details.get("peak_memory_bytes")
    return [
        name,
        *(str(details.get(key, "")) for key in ("device", "dtype")),
        *(manifest.counts.get(key) for key in ("scored", "reused")),
        duration(float(details.get("seconds", manifest.seconds))),
        *(_rounded(details.get(f"{unit}_per_second")) for unit in ("prompts", "tokens")),
        f"{memory / 1e6:,.0f} MB" if memory else "",
    ]


def _tuning_row(name: str, manifest: Manifest) -> list[Any]:
    seconds = float(manifest.details.get("seconds", manifest.seconds))
    tokens, loss = manifest.counts.get("tokens", 0), manifest.details.get("final_loss")
    return [
        name.replace("/seed-", ", seed "),
        *(manifest.counts.get(key) for key in ("records", "steps")),
        tokens,
        duration(seconds),
        _rounded(tokens / seconds if seconds else None),
        "" if loss is None else f"{loss:.3f}",
    ]


def _rounded(value: float | None) -> float | int | None:
    if value is None:
        return None
    return round(value) if value >= 100 else round(float(value), 1)


def _versions(request: ReportRequest) -> Facts:
    """Return which data, models and libraries the artefacts were made with."""
    libraries: dict[str, set[str]] = {}
    artefacts, sources = [], []
    for name, folder in request.stages:
        if (manifest := request.made.get(folder)) is None:
            continue
        artefacts.append([name, manifest.digest[:12], manifest.created_at])
        for library, version in manifest.versions.items():
            libraries.setdefault(library, set()).add(version)
    raw = request.made.get(request.home.raw)
    source = raw.details.get("source") if raw is not None else None
    if isinstance(source, dict):
        identity = str(source.get("sha256") or source.get("revision") or "")
        sources.append([f"dataset {local_name(request.experiment.dataset.path)}", identity])
    for name, manifest in request.below("scores").items():
        parameters = manifest.details.get("parameters")
        size = f"; {parameters:,} parameters" if isinstance(parameters, int) else ""
        where = manifest.details.get("revision") or "local files"
        sources.append([f"model {name}", f"{where}{size}"])
    used = [[name, ", ".join(sorted(found))] for name, found in sorted(libraries.items())]
    return {"sources": sources, "libraries": used, "artefacts": artefacts}


def warnings(request: ReportRequest) -> list[str]:
    """Return everything that a reader should know before trusting the figures."""
    found: list[str] = []
    for name, manifest in request.below("scores").items():
        found += [f"{name}: {words}" for words in manifest.details.get("warnings") or []]
    telling = [request.home.ranking, request.home.comparison]
    telling += [request.home.selected(arm) for arm in request.below("selected")]
    for folder in telling:
        if (told := request.made.get(folder)) is not None:
            words = [*(told.details.get("warnings") or []), *(told.details.get("notes") or [])]
            found += [f"{folder.name}: {line}" for line in words]
    tested = request.made.get(request.home.sensitivity)
    stability = tested.details.get("stability") if tested is not None else None
    if stability and not stability["more_stable_than_chance"]:
        found.append("the selected set is no more stable than chance; see Sensitivity")
    skipped = {
        name.replace("/", "_"): m.counts["skipped"]
        for name, m in request.below("checkpoints").items()
        if m.counts.get("skipped")
    }
    if skipped:
        named = ", ".join(f"{key} {count:,}" for key, count in skipped.items())
        found.append(f"records that did not fit and were not trained on: {named}")
    for manifest in request.below("evaluations").values():
        for name in manifest.details.get("unscored") or []:
            found.append(f"benchmark {name} has answers but no score: it needs a judge")
    notes = request.home.mlflow / "tracking-failures.jsonl"
    if failed := len(notes.read_text(encoding="utf-8").splitlines()) if notes.exists() else 0:
        found.append(
            f"{failed:,} MLflow calls failed; the runs may be incomplete there "
            "(tracking-failures.jsonl in the home's mlflow folder)"
        )
    return list(dict.fromkeys(found))
