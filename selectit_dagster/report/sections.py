"""What was asked, what became of every record, and what was selected.

Every section comes from manifests and stored files; nothing is computed anew. A section
whose stage has not been made, or is not part of the experiment, says so in one line.
"""

from __future__ import annotations

from pathlib import Path

from selectit_dagster.artefacts.accounting import Account, RecordsLostError
from selectit_dagster.artefacts.manifest import Manifest, read_manifest
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.report.blocks import Block, Cell, Section, Table, Text


def absent(title: str, pipeline: Pipeline, stage: str, *, tuning: bool = False) -> Section:
    """Return the section that says that its stage is not there."""
    if tuning and pipeline.experiment.tuning is None:
        return Section(title, [Text("This experiment stops at the selection: no tuning.", "note")])
    return Section(title, [Text(f"Not there yet: materialise {stage}.", "note")])


def asked(pipeline: Pipeline) -> Section:
    """Return what was asked: the settings that decide the outcome."""
    experiment = pipeline.experiment
    rating, selection = experiment.rating, experiment.selection
    rule, size = selection.size
    rows: list[list[Cell]] = [
        ["dataset", local_name(experiment.dataset.path)],
        ["licence of the dataset", experiment.dataset.license],
        [
            "scoring models",
            ", ".join(
                f"{m.name} ({local_name(m.path)})" for m in pipeline.experiment.scoring_models
            ),
        ],
        ["rating prompts K, ratings R", f"{rating.num_prompts}, 1 to {rating.num_ratings}"],
        ["α, weight of the disagreement between prompts", f"{rating.alpha:g}"],
        ["variant", rating.variant],
        ["selection", f"{rule} {size:g}"],
        ["arms", ", ".join(pipeline.arms)],
    ]
    if rating.ablation != "none":
        rows.append(["ablation", rating.ablation])
    if rating.adaptive:
        rows.append(["not the paper's", "adaptive"])
    if (tuning := experiment.tuning) is not None:
        rows += [
            ["base model that is tuned", local_name(tuning.base_model.path)],
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


def local_name(path: str) -> str:
    """Return a local path's last part; a hub name stays whole."""
    return Path(path).name if path.startswith("/") else path


def balance(pipeline: Pipeline) -> Section:
    """Return what became of every record that was read."""
    title = "What became of every record"
    raw = read_manifest(pipeline.home.raw)
    if raw is None:
        return absent(title, pipeline, "raw_dataset")
    curated, ranking = read_manifest(pipeline.home.curated), read_manifest(pipeline.home.ranking)
    blocks: list[Block] = []
    if curated is not None:
        blocks.append(_balance_line(raw, curated, ranking))
    blocks.append(_balance_table(raw, curated, ranking))
    blocks += _reasons(raw, curated, ranking)
    return Section(title, blocks)


def _balance_line(raw: Manifest, curated: Manifest, ranking: Manifest | None) -> Text:
    """Return the balance as sentences; a balance that does not hold is a warning."""
    try:
        account = Account.of(raw.counts, curated.counts, ranking.counts if ranking else None)
    except RecordsLostError as error:
        return Text(f"The balance does not hold: {error}", "warning")
    return Text(" ".join(f"{line[0].upper()}{line[1:]}." for line in account.lines()), "lead")


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


def selection(pipeline: Pipeline, overlaps: dict[str, int]) -> Section:
    """Return what each arm selected; ``overlaps`` are the records shared with SelectIT's."""
    title = "The selected subsets"
    rows: list[list[Cell]] = []
    blocks: list[Block] = []
    for arm in pipeline.arms:
        manifest = read_manifest(pipeline.home.selected(arm))
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
        if len((history := pipeline.history(arm)).state.versions) > 1:
            blocks.append(Text(f"{arm}: {history.said()}"))
    if not rows:
        return absent(title, pipeline, pipeline.selected_asset)
    columns = ["arm", "records", "of curated", "characters per response", "also SelectIT's", "rule"]
    return Section(title, [Table(columns, rows), *blocks])
