"""The report's sections: the answer, what was asked, the records, the scores, the cost."""

# ruff: noqa: S608 - table expressions come from Workspace.table, which escapes paths
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selectit_dagster.artefacts.accounting import Account, RecordsLostError
from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.comparison.costs import saving
from selectit_dagster.progress import Progress, duration
from selectit_dagster.report.report import Block, ReportRequest, Section, picture, table, text
from selectit_dagster.selection.history import History

_NO_TUNING = "This experiment stops at the selection: no tuning."
_SHOWN_RECORDS = 10
_ORDER = {"selectit": 0, "base": 2}


def sections(request: ReportRequest, scratch: Path, progress: Progress) -> list[Section]:
    """Return the sections, the answer first; ``scratch`` is a folder with room to spill."""
    with Workspace(scratch) as work:
        makers: list[tuple[str, Callable[[], list[Block]]]] = [
            ("Did it help?", lambda: _answer(request)),
            ("The selected subsets", lambda: _selected(request, work)),
            ("What was asked", lambda: _asked(request)),
            ("What became of every record", lambda: _balance(request)),
            ("Best and worst records", lambda: _extremes(request, work)),
            ("People and rater", lambda: _people(request)),
            ("Scores", lambda: _scores(request)),
            ("Sensitivity", lambda: _sensitivity(request)),
            ("What it cost", lambda: _cost(request)),
            ("Versions", lambda: _versions(request)),
        ]
        found = []
        for number, (title, make) in enumerate(makers, 1):
            if blocks := make():
                found.append(Section(title, blocks))
            progress.update(number, len(makers))
    return found


def _absent(stage: str) -> list[Block]:
    return [text(f"Not there yet: materialise {stage}.", "note")]


def _picture(path: Path, title: str, words: str = "") -> list[Block]:
    return [picture(title, path.read_bytes(), words)] if path.exists() else []


def local_name(path: str) -> str:
    """Return a local path's last part; a hub name stays whole."""
    return Path(path).name if path.startswith("/") else path


# --- the answer ---------------------------------------------------------------------------------


def _answer(request: ReportRequest) -> list[Block]:
    manifest = request.made.get(request.home.comparison)
    if request.experiment.tuning is None:
        return [text(_NO_TUNING, "note")]
    if manifest is None:
        return _absent("arm_comparison")
    details = manifest.details
    entries = details.get("arms", {})
    names = sorted(entries, key=lambda name: _ORDER.get(name, 1))
    blocks = [text(said, "lead") for n in names if (said := entries[n].get("sentence"))]
    forest = request.home.comparison / "forest.png"
    blocks += _picture(
        forest, "Differences from the baseline arm", "Per benchmark, with intervals."
    )
    columns, rows = results(details)
    method = details.get("method", {})
    notes = method.get("notes", []) if isinstance(method, dict) else []
    return [*blocks, table(columns, rows), *(text(note, "note") for note in notes)]


def results(details: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the comparison's figures as columns and rows, SelectIT first, the base model last."""
    arms = sorted(details.get("arms", {}).items(), key=lambda item: _ORDER.get(item[0], 1))
    level = f"{details.get('method', {}).get('confidence', 0.95):.0%} interval"
    columns = ["arm", "benchmark", "runs", "score", level, f"against {details.get('baseline')}"]
    columns += [f"its {level}", "verdict", "minimum detectable effect"]
    return columns, [
        _result_row(arm, entry, name, result)
        for arm, entry in arms
        for name, result in entry.get("results", {}).items()
    ]


def _result_row(arm: str, entry: dict[str, Any], name: str, result: dict[str, Any]) -> list[Any]:
    scale = result.get("scale", 1)

    def figure(value: float | None, sign: str = "") -> str:
        if value is None:
            return ""
        return f"{scale * value:{sign}.1f}" if scale == 100 else f"{value:{sign}.4g}"

    def span(low: float | None, high: float | None) -> str:
        return f"{figure(low)} to {figure(high)}" if low is not None and high is not None else ""

    cells = [arm, name, entry.get("runs"), figure(result.get("mean"))]
    cells += [span(*result.get("interval", (None, None)))]
    cells += [figure(result.get("difference"), "+"), span(result.get("low"), result.get("high"))]
    return [*cells, result.get("verdict", "baseline"), figure(result.get("smallest_detectable"))]


def _selected(request: ReportRequest, work: Workspace) -> list[Block]:
    """Return what each arm selected, how much of it is SelectIT's, and what changed."""
    rows, blocks = [], []
    selected = request.below("selected")
    own = request.home.selected(request.production_arm) / "dataset.parquet"
    for arm, manifest in selected.items():
        details = manifest.details
        characters = (details.get("response_characters") or {}).get("selected")
        shared = None
        if request.production_arm in selected:
            chosen = request.home.selected(arm) / "dataset.parquet"
            query = (
                f"SELECT count(*) FROM {work.table(chosen)} "
                f"SEMI JOIN {work.table(own)} USING (record_id)"
            )
            shared = int(str(work.row(query)[0]))
        size, share = manifest.counts["selected"], f"{details.get('share_of_curated', 0):.1%}"
        described = details.get("describe", "")
        explorer = _explorer(request, arm)
        name = (arm, explorer) if explorer else arm
        rows.append([name, size, share, round(characters or 0), shared, described])
        history = History(request.home.history(arm), request.home.selected(arm))
        if len(history.state.versions) > 1:
            blocks.append(text(f"{arm}: {history.said()}"))
    if not rows:
        return _absent(request.experiment.dagster.selected_asset)
    columns = ["arm", "records", "of curated", "characters per response"]
    columns += [f"also {request.production_arm}'s", "rule"]
    note = "An arm's name opens every record of its selection, with why it is in or out."
    links = any(isinstance(row[0], tuple) for row in rows)
    return [table(columns, rows), *blocks, *([text(note, "note")] if links else [])]


def _explorer(request: ReportRequest, arm: str, record_id: str = "") -> str:
    """Return the address of an arm's explorer as the report's folder sees it, if it is there."""
    if not (request.home.explorer(arm) / "explorer.html").exists():
        return ""
    mark = f"#{quote(record_id, safe='')}" if record_id else ""
    return f"../explorer/{quote(arm)}/explorer.html{mark}"


# --- what was asked, and what became of the records ---------------------------------------------


def _asked(request: ReportRequest) -> list[Block]:
    experiment = request.experiment
    rating, (rule, size) = experiment.rating, experiment.selection.size
    models = [f"{m.name} ({local_name(m.path)})" for m in experiment.scoring_models]
    rows: list[list[Any]] = [
        ["dataset", local_name(experiment.dataset.path)],
        ["licence of the dataset", experiment.dataset.license],
        ["scoring models", ", ".join(models)],
        ["rating prompts K, ratings R", f"{rating.num_prompts}, 1 to {rating.num_ratings}"],
        ["α, weight of the disagreement between prompts", f"{rating.alpha:g}"],
        ["variant", rating.variant],
        ["selection", f"{rule} {size:g}"],
        [
            "arms",
            ", ".join(request.below("selected") or (a.name for a in experiment.selection.arms)),
        ],
    ]
    if rating.ablation != "none":
        rows.append(["ablation", rating.ablation])
    if rating.adaptive:
        rows.append(["not the paper's", "adaptive"])
    if (tuning := experiment.tuning) is not None:
        how = f"{tuning.method}, {tuning.epochs:g} epochs, batch {tuning.batch_size}, learning rate"
        rows += [
            ["base model that is tuned", local_name(tuning.base_model.path)],
            ["tuning", f"{how} {tuning.learning_rate:g}, {tuning.schedule}"],
            ["training seeds", ", ".join(map(str, tuning.seeds))],
        ]
    if experiment.benchmarks:
        names = (f"{b.name} ({b.task}, {b.protocol})" for b in experiment.benchmarks)
        rows.append(["benchmarks", ", ".join(names)])
    return [table(["setting", "value"], rows)]


def _balance(request: ReportRequest) -> list[Block]:
    home, made = request.home, request.made
    raw, curated, ranking = (made.get(f) for f in (home.raw, home.curated, home.ranking))
    if raw is None:
        return _absent("raw_dataset")
    blocks: list[Block] = []
    rows: list[list[Any]] = [["read", raw.counts["read"], ""]]
    rows.append(["rejected while reading", -raw.counts["rejected"], "rejected.jsonl names each"])
    if curated is not None:
        try:
            account = Account.of(raw.counts, curated.counts, ranking.counts if ranking else None)
            lines = [f"{line[0].upper()}{line[1:]}." for line in account.lines()]
            blocks.append(text(" ".join(lines), "lead"))
        except RecordsLostError as error:
            blocks.append(text(f"The balance does not hold: {error}", "warning"))
        for step in curated.details.get("steps", []):
            if (found := step.get("found", 0)) or step.get("dropped", 0):
                note = f"found {found:,}; setting: {step.get('setting', '')}"
                rows.append([step["step"].replace("_", " "), -step.get("dropped", 0), note])
        rows.append(["curated", curated.counts["kept"], ""])
    if ranking is not None:
        for status in ("too_long", "failed"):
            if ranking.counts.get(status):
                rows.append([status.replace("_", " "), -ranking.counts[status], "not ranked"])
        rows.append(["ranked", ranking.counts["ranked"], ""])
    return [*blocks, table(["", "records", ""], rows), *_reasons(raw, curated, ranking)]


def _reasons(raw: Manifest, curated: Manifest | None, ranking: Manifest | None) -> list[Block]:
    """Return why records were rejected, contaminated or not ranked."""
    blocks = [text(f"Of the source: {note}.") for note in raw.details.get("notes") or []]
    if rejects := raw.details.get("rejects"):
        rows = [[entry["field"], entry["reason"], entry["count"]] for entry in rejects]
        blocks.append(table(["field", "why it was rejected", "records"], rows))
    found = (curated.details.get("decontamination") or {}) if curated is not None else {}
    if found.get("checked"):
        named = ", ".join(f"{name} {n:,}" for name, n in found["contaminated"].items()) or "none"
        asked = ", ".join(f"{name} {n:,}" for name, n in found["questions"].items())
        words = f"Compared with the benchmarks' questions ({asked}); contaminated: {named}."
        blocks.append(text(words))
    elif curated is not None:
        blocks.append(text("No comparison with benchmark questions was made.", "note"))
    if examples := ranking.details.get("not_ranked_examples") if ranking is not None else None:
        rows = [[e["record_id"], e["status"], e["reason"]] for e in examples]
        blocks.append(table(["record", "status", "why it was not ranked"], rows))
    return blocks


# --- scores -------------------------------------------------------------------------------------


def _extremes(request: ReportRequest, work: Workspace) -> list[Block]:
    """Return the best and the worst records; each opens in the explorer."""
    if request.home.ranking not in request.made:
        return _absent("ranking")
    ranking = work.table(request.home.ranking / "ranking.parquet")
    records = work.table(request.home.curated / "records.parquet")
    blocks = []
    for title, order in (("The best, best first", "ASC"), ("The worst, worst first", "DESC")):
        query = (
            f"SELECT r.rank, r.score, record_id, left(c.instruction, 200) AS instruction, "
            f"left(c.response, 200) AS response FROM {ranking} r JOIN {records} c "
            f"USING (record_id) WHERE r.rank IS NOT NULL ORDER BY r.rank {order} "
            f"LIMIT {_SHOWN_RECORDS}"
        )
        rows = [list(row.values()) for b in work.batches(query) for row in b.to_pylist()]
        for row in rows:
            if address := _explorer(request, request.production_arm, row[2]):
                row[2] = (row[2], address)
        blocks.append(table(["rank", "score", "record", "instruction", "response"], rows, title))
    return blocks


def _people(request: ReportRequest) -> list[Block]:
    """Return how far people's marks agree with the rater, where there are marks."""
    review, chosen = request.experiment.selection.review, request.below("selected")
    if not review or request.home.ranking not in request.made:
        return []
    from selectit_dagster.selection.review import agreement, read_review

    size = chosen[request.production_arm].counts["selected"] if chosen else 0
    found = agreement(read_review(Path(review)), request.home.curated, request.home.ranking, size)
    if found is None:
        return [text("Nobody has marked a ranked record keep or drop.", "note")]
    lead = (
        f"People marked {found['keep']:,} ranked records keep and {found['drop']:,} drop "
        f"({found['unsure']:,} unsure); on {found['agree']:,} of {found['judged']:,} the rater's "
        f"first {size:,} agree with them."
    )
    names = {
        "auc": "AUC: a kept record has the higher score",
        "kappa": "κ: keep and drop against in and out",
    }
    rows = [[name, *(f"{v:.3f}" for v in found[key])] for key, name in names.items() if found[key]]
    kinds = [[*list(kind.values())[:-1], f"{kind['agree']:.0%}"] for kind in found["kinds"]]
    columns = ["", "value", "95 % from", "to"]
    missing = [
        f"{names[key]}: people used only one of the marks." for key in names if not found[key]
    ]
    return [
        text(lead, "lead"),
        *([table(columns, rows)] if rows else []),
        *(text(line, "note") for line in missing),
        table([*list(found["kinds"][0])[:-1], "agreement"], kinds, "Least agreement first"),
    ]


def _scores(request: ReportRequest) -> list[Block]:
    """Return the plots that the stages drew, and those over several stages."""
    from selectit_dagster.rating import rating_plots
    from selectit_dagster.selection import selection_plots

    home, ranking = request.home, request.made.get(request.home.ranking)
    if ranking is None:
        return _absent("ranking")
    blocks: list[Block] = []
    chosen = home.selected(request.production_arm)
    if ranking.counts["ranked"] == 0:
        blocks.append(text("No record could be ranked.", "warning"))
    elif chosen in request.made:
        parts = selection_plots.score_histogram(home.ranking, chosen)
        lengths = selection_plots.length_against_score(home.curated, home.ranking, chosen)
        blocks.append(picture("Model level: the fused score", parts, "What is kept, to the right."))
        warned = "A strong correlation would mean that little else than length is rated."
        blocks.append(picture("Length against score", lengths, warned))
    names = [model.name for model in request.experiment.scoring_models]
    for name in names:
        folder = home.scores(name)
        blocks += _picture(folder / "scores.png", f"{name}: token and sentence level")
        prompts = f"{name}: disagreement between the rating prompts"
        blocks += _picture(folder / "prompts.png", prompts)
    used = ranking.details.get("parameters", {})
    if len(names) > 1 and not request.experiment.rating.adaptive and used:
        folders = [(name, home.scores(name)) for name in names]
        png = rating_plots.model_disagreement(folders, used["num_prompts"], used["alpha"])
        blocks.append(picture("Disagreement between the models", png))
    rows = [
        [name, mass.get("mean"), mass.get("p05")]
        for name, manifest in request.below("scores").items()
        if (mass := manifest.details.get("rating_mass"))
    ]
    columns = ["model", "mean probability of all rating tokens", "5 % of the answers are below"]
    return [*blocks, *([table(columns, rows)] if rows else [])]


def _sensitivity(request: ReportRequest) -> list[Block]:
    manifest = request.made.get(request.home.sensitivity)
    if manifest is None:
        return _absent("sensitivity")
    rows = [
        [row["factor"], str(row["value"]), f"{row['overlap']:.1%}", f"{row['spearman']:.3f}"]
        for row in manifest.details.get("settings", [])
    ]
    columns = ["what is changed", "to", "of the selection stays", "rank correlation"]
    drawn = request.home.sensitivity / "sensitivity.png"
    return [
        text(manifest.details["sentence"], "lead"),
        table(columns, rows),
        *_picture(drawn, "Overlap of the sets that other settings select"),
    ]


# --- what it cost, and with what it was made ----------------------------------------------------


def _cost(request: ReportRequest) -> list[Block]:
    scoring = [
        [
            name,
            *(str(m.details.get(key, "")) for key in ("device", "dtype")),
            *(m.counts.get(key) for key in ("scored", "reused")),
            duration(float(m.details.get("seconds", m.seconds))),
            *(_rounded(m.details.get(f"{unit}_per_second")) for unit in ("prompts", "tokens")),
            f"{m.details['peak_memory_bytes'] / 1e6:,.0f} MB"
            if m.details.get("peak_memory_bytes")
            else "",
        ]
        for name, m in request.below("scores").items()
    ]
    tuning = [_tuning_row(name, m) for name, m in request.below("checkpoints").items()]
    if not scoring and not tuning:
        return _absent("uncertainty_scores")
    blocks: list[Block] = []
    compared = request.made.get(request.home.comparison)
    if compared is not None and (sentence := saving(compared.details.get("costs") or [])):
        blocks.append(text(sentence, "lead"))
    if scoring:
        columns = ["scoring model", "device", "dtype", "prompts scored", "prompts reused"]
        columns += ["time", "prompts/s", "tokens/s", "peak memory"]
        blocks.append(table(columns, scoring))
    if tuning:
        columns = ["checkpoint", "records", "steps", "tokens", "time", "tokens/s", "final loss"]
        blocks.append(table(columns, tuning))
    if request.planned:
        rows = [list(row.values()) for row in request.planned]
        heads = list(request.planned[0])
        blocks.append(table(heads, rows, "What `selectit plan` said before, and what it took"))
    if request.experiment.tuning is None:
        blocks.append(text(_NO_TUNING, "note"))
    return blocks


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


def _versions(request: ReportRequest) -> list[Block]:
    """Return which data, models and libraries the artefacts were made with."""
    libraries: dict[str, set[str]] = {}
    rows, known = [], []
    for name, folder in request.stages:
        if (manifest := request.made.get(folder)) is None:
            continue
        rows.append([name, manifest.digest[:12], manifest.created_at])
        for library, version in manifest.versions.items():
            libraries.setdefault(library, set()).add(version)
    raw = request.made.get(request.home.raw)
    source = raw.details.get("source") if raw is not None else None
    if isinstance(source, dict):
        identity = str(source.get("sha256") or source.get("revision") or "")
        known.append([f"dataset {local_name(request.experiment.dataset.path)}", identity])
    for name, manifest in request.below("scores").items():
        parameters = manifest.details.get("parameters")
        size = f"; {parameters:,} parameters" if isinstance(parameters, int) else ""
        known.append(
            [f"model {name}", f"{manifest.details.get('revision') or 'local files'}{size}"]
        )
    used = [[name, ", ".join(sorted(found))] for name, found in sorted(libraries.items())]
    return [
        table(["what", "identity"], known),
        table(["library", "version"], used),
        table(["artefact", "content (SHA-256)", "made"], rows),
    ]


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
