"""The report's sections, each from manifests and stored files; nothing is computed anew.

A section whose stage has not been made, or is not part of the experiment, says so in one
line, so that what is missing is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selectit_dagster.artefacts import Manifest, read_manifest
from selectit_dagster.platform.pipeline import Pipeline
from selectit_dagster.platform.reporting.blocks import (
    Block,
    Cell,
    Picture,
    Section,
    Table,
    Text,
)
from selectit_dagster.progress import duration


def absent(title: str, line: Pipeline, stage: str, *, tuning: bool = False) -> Section:
    """Return the section that says that its stage is not there."""
    if tuning and line.experiment.tuning is None:
        return Section(title, [Text("This experiment stops at the selection: no tuning.", "note")])
    return Section(title, [Text(f"Not there yet: materialise {stage}.", "note")])


def asked(line: Pipeline) -> Section:
    """Return what was asked: the settings that decide the outcome."""
    experiment = line.experiment
    rating, selection = experiment.rating, experiment.selection
    rule, size = selection.size
    rows: list[list[Cell]] = [
        ["dataset", _name(experiment.dataset.path)],
        ["licence of the dataset", experiment.dataset.license],
        ["scoring models", ", ".join(f"{m.name} ({_name(m.path)})" for m in line_models(line))],
        ["rating prompts K, ratings R", f"{rating.num_prompts}, 1 to {rating.num_ratings}"],
        ["α, weight of the disagreement between prompts", f"{rating.alpha:g}"],
        ["variant", rating.variant],
        ["selection", f"{rule} {size:g}"],
        ["arms", ", ".join(line.arms)],
    ]
    if rating.ablation != "none":
        rows.append(["ablation", rating.ablation])
    if rating.layout != "paper" or rating.adaptive:
        rows.append(["not the paper's", f"layout {rating.layout}, adaptive {rating.adaptive}"])
    if (tuning := experiment.tuning) is not None:
        rows += [
            ["base model that is tuned", _name(tuning.base_model.path)],
            [
                "tuning",
                f"{tuning.method}, {tuning.epochs:g} epochs, batch {tuning.batch_size}, "
                f"learning rate {tuning.learning_rate:g}, {tuning.schedule}",
            ],
            ["training seeds", ", ".join(map(str, tuning.seeds))],
        ]
    if experiment.benchmarks:
        names = ", ".join(f"{b.name} ({b.task}, {b.protocol})" for b in experiment.benchmarks)
        rows.append(["benchmarks", names])
    return Section("What was asked", [Table(["setting", "value"], rows)])


def line_models(line: Pipeline) -> list[Any]:
    """Return the scoring models of the experiment."""
    return list(line.experiment.scoring_models)


def _name(path: str) -> str:
    """Return a local path's last part; a hub name stays whole."""
    return Path(path).name if path.startswith("/") else path


def balance(line: Pipeline) -> Section:
    """Return what became of every record that was read."""
    title = "What became of every record"
    raw = read_manifest(line.home.raw)
    if raw is None:
        return absent(title, line, "raw_dataset")
    curated, ranking = read_manifest(line.home.curated), read_manifest(line.home.ranking)
    blocks: list[Block] = []
    if curated is not None:
        blocks.append(_balance_line(raw, curated))
    blocks.append(_balance_table(raw, curated, ranking))
    blocks += _reasons(raw, curated, ranking)
    return Section(title, blocks)


def _balance_line(raw: Manifest, curated: Manifest) -> Text:
    """Return the balance as one sentence; a balance that does not hold is a warning."""
    read, counts = raw.counts["read"], curated.counts
    rejected = raw.counts["rejected"] + counts.get("rejected", 0)
    parts = {"kept": counts["kept"], "rejected": rejected}
    parts |= {"duplicate": counts.get("duplicate", 0) + counts.get("near_duplicate", 0)}
    parts |= {"contaminated": counts.get("contaminated", 0)}
    sentence = f"Read {read:,} = " + " + ".join(f"{name} {n:,}" for name, n in parts.items()) + "."
    if sum(parts.values()) == read:
        return Text(sentence, "lead")
    return Text(f"The balance does not hold: {sentence}", "warning")


def _balance_table(raw: Manifest, curated: Manifest | None, ranking: Manifest | None) -> Table:
    rows: list[list[Cell]] = [
        ["read", raw.counts["read"], ""],
        ["rejected while reading", -raw.counts["rejected"], "rejected.jsonl names each"],
    ]
    if curated is not None:
        for step in curated.details.get("steps", []):
            found, dropped = step.get("found", 0), step.get("dropped", 0)
            if found or dropped:
                note = f"found {found:,}; setting: {step.get('setting', '')}"
                rows.append([str(step["step"]).replace("_", " "), -dropped, note])
        rows.append(["curated", curated.counts["kept"], ""])
    if ranking is not None:
        for status in ("too_long", "failed"):
            if ranking.counts.get(status):
                rows.append([status.replace("_", " "), -ranking.counts[status], "not ranked"])
        rows.append(["ranked", ranking.counts["ranked"], ""])
    return Table(["", "records", ""], rows)


def _reasons(raw: Manifest, curated: Manifest | None, ranking: Manifest | None) -> list[Block]:
    """Return why records were rejected, contaminated or not ranked."""
    blocks: list[Block] = []
    if rejects := raw.details.get("rejects"):
        rows = [[entry["field"], entry["reason"], entry["count"]] for entry in rejects]
        blocks.append(Table(["field", "why it was rejected", "records"], rows))
    found = (curated.details.get("decontamination") or {}) if curated is not None else {}
    if found.get("checked"):
        named = ", ".join(f"{name} {n:,}" for name, n in found["contaminated"].items()) or "none"
        asked_for = ", ".join(f"{name} {n:,}" for name, n in found["questions"].items())
        blocks.append(
            Text(f"Compared with the benchmarks' questions ({asked_for}); contaminated: {named}.")
        )
    elif curated is not None:
        blocks.append(Text("No comparison with benchmark questions was made.", "note"))
    examples = ranking.details.get("not_ranked_examples") if ranking is not None else None
    if examples:
        rows = [[e["record_id"], e["status"], e["reason"]] for e in examples]
        blocks.append(Table(["record", "status", "why it was not ranked"], rows))
    return blocks


def selection(line: Pipeline, overlaps: dict[str, int]) -> Section:
    """Return what each arm selected; ``overlaps`` are the records shared with SelectIT's."""
    title = "The selected subsets"
    rows: list[list[Cell]] = []
    blocks: list[Block] = []
    for arm in line.arms:
        manifest = read_manifest(line.home.selected(arm))
        if manifest is None:
            continue
        details = manifest.details
        characters = details.get("response_characters") or {}
        rows.append(
            [
                arm,
                manifest.counts["selected"],
                f"{details.get('share_of_curated', 0):.1%}",
                round(characters["selected"]) if characters.get("selected") else None,
                overlaps.get(arm),
                details.get("describe", ""),
            ]
        )
        change = details.get("change") or {}
        if change.get("text"):
            blocks.append(Text(f"Since the last selection ({arm}): {change['text']}"))
    if not rows:
        return absent(title, line, "selective_alpaca")
    columns = ["arm", "records", "of curated", "characters per response", "also SelectIT's", "rule"]
    return Section(title, [Table(columns, rows), *blocks])


def arms(line: Pipeline) -> Section:
    """Return the comparison: sentences, every figure with its interval, the plot."""
    title = "Did it help?"
    manifest = read_manifest(line.home.comparison)
    if manifest is None:
        return absent(title, line, "arm_comparison", tuning=True)
    details = manifest.details
    compared = _in_order(details.get("arms", {}))
    blocks: list[Block] = [
        Text(entry["sentence"], "lead") for entry in compared.values() if entry.get("sentence")
    ]
    forest = line.home.comparison / "forest.png"
    if forest.exists():
        text = "Per benchmark, with intervals."
        blocks.append(Picture("Differences from the baseline arm", forest.read_bytes(), text))
    baseline = details.get("baseline", line.experiment.comparison.baseline)
    level = f"{line.experiment.comparison.confidence:.0%}"
    rows = [
        _arm_row(arm, entry, name, result)
        for arm, entry in compared.items()
        for name, result in entry.get("results", {}).items()
    ]
    columns = ["arm", "benchmark", "runs", "score", f"{level} interval", f"against {baseline}"]
    columns += [f"{level} interval", "verdict", "smallest it would have seen"]
    blocks.append(Table(columns, rows))
    method = details.get("method", {})
    notes = method.get("notes", []) if isinstance(method, dict) else []
    blocks += [Text(note, "note") for note in notes]
    return Section(title, blocks)


def _arm_row(arm: str, entry: dict[str, Any], name: str, result: dict[str, Any]) -> list[Cell]:
    scale = result.get("scale", 1)

    def figure(value: float | None, sign: str = "") -> str:
        if value is None:
            return ""
        return f"{scale * value:{sign}.1f}" if scale == 100 else f"{value:{sign}.4g}"

    def span(low: float | None, high: float | None) -> str:
        return f"{figure(low)} to {figure(high)}" if low is not None and high is not None else ""

    cells: list[Cell] = [arm, name, entry.get("runs"), figure(result.get("mean"))]
    cells += [span(*result.get("interval", (None, None)))]
    cells += [figure(result.get("difference"), "+"), span(result.get("low"), result.get("high"))]
    return [*cells, result.get("verdict", "baseline"), figure(result.get("smallest_detectable"))]


def _in_order(table: dict[str, Any]) -> dict[str, Any]:
    """Return the arms with SelectIT first and the untuned model last."""
    rank = {"selectit": 0, "base": 2}
    return dict(sorted(table.items(), key=lambda item: rank.get(item[0], 1)))


def cost(line: Pipeline) -> Section:
    """Return what scoring and tuning took."""
    blocks: list[Block] = []
    scoring: list[list[Cell]] = []
    for model in line_models(line):
        manifest = read_manifest(line.home.scores(model.name))
        if manifest is None:
            continue
        d, counts = manifest.details, manifest.counts
        seconds = float(d.get("seconds", manifest.seconds))
        scoring.append(
            [
                model.name,
                str(d.get("device", "")),
                str(d.get("dtype", "")),
                counts.get("scored"),
                counts.get("reused"),
                duration(seconds),
                _rounded(d.get("prompts_per_second")),
                _rounded(d.get("tokens_per_second")),
                _megabytes(d.get("peak_memory_bytes")),
            ]
        )
    if scoring:
        columns = ["scoring model", "device", "dtype", "prompts scored", "prompts reused"]
        columns += ["time", "prompts/s", "tokens/s", "peak memory"]
        blocks.append(Table(columns, scoring))
    tuning = _tuning_rows(line)
    if tuning:
        columns = ["checkpoint", "records", "steps", "tokens", "time", "tokens/s", "final loss"]
        blocks.append(Table(columns, tuning))
    elif line.experiment.tuning is None:
        blocks.append(Text("This experiment stops at the selection: no tuning.", "note"))
    if not scoring and not tuning:
        return absent("What it cost", line, "uncertainty_scores")
    return Section("What it cost", blocks)


def _tuning_rows(line: Pipeline) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for unit in line.units.values():
        manifest = read_manifest(line.home.checkpoint(unit.arm, unit.seed))
        if manifest is None:
            continue
        seconds = float(manifest.details.get("seconds", manifest.seconds))
        tokens = manifest.counts.get("tokens", 0)
        rows.append(
            [
                f"{unit.arm}, seed {unit.seed}",
                manifest.counts.get("records"),
                manifest.counts.get("steps"),
                tokens,
                duration(seconds),
                _rounded(tokens / seconds if seconds else None),
                _loss(manifest.details.get("final_loss")),
            ]
        )
    return rows


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _rounded(value: float | None) -> float | int | None:
    if value is None:
        return None
    return round(value) if value >= 100 else round(float(value), 1)


def _megabytes(value: float | None) -> str:
    return "" if not value else f"{value / 1e6:,.0f} MB"


def evaluations_without_score(line: Pipeline) -> list[str]:
    """Return benchmarks that have outputs but no score, one line each."""
    lines: list[str] = []
    for unit in line.units.values():
        manifest = read_manifest(line.home.evaluation(unit.arm, unit.seed))
        for name in (manifest.details.get("unscored") or []) if manifest is not None else []:
            lines.append(f"benchmark {name} has answers but no score: it needs a judge")
    return list(dict.fromkeys(lines))


def warnings(line: Pipeline, tracking_failures: int) -> list[str]:
    """Return everything that a reader should know before trusting the figures."""
    found: list[str] = []
    for model in line_models(line):
        manifest = read_manifest(line.home.scores(model.name))
        if manifest is None:
            continue
        found += [f"{model.name}: {text}" for text in manifest.details.get("warnings") or []]
    for folder in (line.home.ranking, line.home.comparison, *map(line.home.selected, line.arms)):
        manifest = read_manifest(folder)
        if manifest is not None:
            details = manifest.details
            texts = [*(details.get("warnings") or []), *(details.get("notes") or [])]
            found += [f"{folder.name}: {text}" for text in texts]
    found += _not_trained_on(line)
    found += evaluations_without_score(line)
    if tracking_failures:
        found.append(
            f"{tracking_failures:,} MLflow calls failed; the runs may be incomplete there "
            "(tracking-failures.jsonl in the home's mlflow folder)"
        )
    return list(dict.fromkeys(found))


def _not_trained_on(line: Pipeline) -> list[str]:
    """Return one line on the records that did not fit into training, if there are any."""
    skipped = {}
    for unit in line.units.values():
        manifest = read_manifest(line.home.checkpoint(unit.arm, unit.seed))
        if manifest is not None and manifest.counts.get("skipped"):
            skipped[unit.key] = manifest.counts["skipped"]
    if not skipped:
        return []
    named = ", ".join(f"{key} {count:,}" for key, count in skipped.items())
    return [f"records that did not fit and were not trained on: {named}"]


def rating_mass(line: Pipeline) -> Table | None:
    """Return how much probability the rating tokens had together, per model."""
    rows: list[list[Cell]] = []
    for model in line_models(line):
        manifest = read_manifest(line.home.scores(model.name))
        mass = manifest.details.get("rating_mass") if manifest is not None else None
        if mass:
            rows.append([model.name, mass.get("mean"), mass.get("p05")])
    if not rows:
        return None
    columns = ["model", "mean probability of all rating tokens", "5 % of the answers are below"]
    return Table(columns, rows)


def stages(line: Pipeline) -> list[tuple[str, Path]]:
    """Return every stage's name with its folder, in pipeline order."""
    home = line.home
    found = [("raw_dataset", home.raw), ("curated_dataset", home.curated)]
    found += [(f"uncertainty_scores/{m.name}", home.scores(m.name)) for m in line_models(line)]
    found.append(("ranking", home.ranking))
    found += [(f"selective_alpaca [{arm}]", home.selected(arm)) for arm in line.arms]
    if line.experiment.tuning is not None:
        units = line.units.values()
        found += [(f"lora_checkpoints [{u.key}]", home.checkpoint(u.arm, u.seed)) for u in units]
        found.append(("untuned_evaluation", home.evaluation("base", None)))
        found += [
            (f"benchmark_evaluations [{u.key}]", home.evaluation(u.arm, u.seed)) for u in units
        ]
        found.append(("arm_comparison", home.comparison))
    return found


def versions(line: Pipeline) -> Section:
    """Return which data, models and libraries the artefacts were made with."""
    libraries: dict[str, set[str]] = {}
    rows: list[list[Cell]] = []
    for name, folder in stages(line):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        rows.append([name, manifest.digest[:12], manifest.created_at])
        for library, version in manifest.versions.items():
            libraries.setdefault(library, set()).add(version)
    blocks: list[Block] = [Table(["what", "identity"], _identities(line))]
    versions_used: list[list[Cell]] = [
        [name, ", ".join(sorted(found))] for name, found in sorted(libraries.items())
    ]
    blocks.append(Table(["library", "version"], versions_used))
    blocks.append(Table(["artefact", "content (SHA-256)", "made"], rows))
    return Section("Versions", blocks)


def _identities(line: Pipeline) -> list[list[Cell]]:
    """Return what data and models are known by."""
    rows: list[list[Cell]] = []
    raw = read_manifest(line.home.raw)
    source = raw.details.get("source") if raw is not None else None
    if isinstance(source, dict):
        identity = source.get("sha256") or source.get("revision") or ""
        rows.append([f"dataset {_name(line.experiment.dataset.path)}", str(identity)])
    for model in line_models(line):
        manifest = read_manifest(line.home.scores(model.name))
        if manifest is not None:
            parameters = manifest.details.get("parameters")
            size = f"{parameters:,} parameters" if isinstance(parameters, int) else ""
            revision = manifest.details.get("revision") or "local files"
            rows.append([f"model {model.name}", f"{revision}; {size}".strip("; ")])
    return rows
