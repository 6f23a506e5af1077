"""What a reader should know first, and with what the artefacts were made."""

from __future__ import annotations

from pathlib import Path

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage_factory import StageFactory
from selectit_dagster.report.blocks import Block, Cell, Section, Table
from selectit_dagster.report.sections import local_name


def stages(pipeline: StageFactory) -> list[tuple[str, Path]]:
    """Return every stage's name with its folder, in pipeline order."""
    home = pipeline.home
    found = [("raw_dataset", home.raw), ("curated_dataset", home.curated)]
    found += [
        (f"uncertainty_scores/{m.name}", home.scores(m.name))
        for m in pipeline.experiment.scoring_models
    ]
    found += [("ranking", home.ranking), ("sensitivity", home.sensitivity)]
    found += [(f"selective_alpaca [{arm}]", home.selected(arm)) for arm in pipeline.arms]
    if pipeline.experiment.tuning is not None:
        units = pipeline.units.values()
        found += [(f"lora_checkpoints [{u.key}]", home.checkpoint(u.arm, u.seed)) for u in units]
        found.append(("untuned_evaluation", home.evaluation("base", None)))
        found += [
            (f"benchmark_evaluations [{u.key}]", home.evaluation(u.arm, u.seed)) for u in units
        ]
        found.append(("arm_comparison", home.comparison))
    return found


def warnings(pipeline: Pipeline, tracking_failures: int) -> list[str]:
    """Return everything that a reader should know before trusting the figures."""
    found: list[str] = []
    for model in pipeline.experiment.scoring_models:
        manifest = read_manifest(pipeline.home.scores(model.name))
        if manifest is None:
            continue
        found += [f"{model.name}: {text}" for text in manifest.details.get("warnings") or []]
    for folder in (
        pipeline.home.ranking,
        pipeline.home.comparison,
        *map(pipeline.home.selected, pipeline.arms),
    ):
        manifest = read_manifest(folder)
        if manifest is not None:
            details = manifest.details
            texts = [*(details.get("warnings") or []), *(details.get("notes") or [])]
            found += [f"{folder.name}: {text}" for text in texts]
    tested = read_manifest(pipeline.home.sensitivity)
    stability = tested.details.get("stability") if tested is not None else None
    if stability and not stability["more_stable_than_chance"]:
        found.append("the selected set is no more stable than chance; see Sensitivity")
    found += _not_trained_on(pipeline)
    found += evaluations_without_score(pipeline)
    if tracking_failures:
        found.append(
            f"{tracking_failures:,} MLflow calls failed; the runs may be incomplete there "
            "(tracking-failures.jsonl in the home's mlflow folder)"
        )
    return list(dict.fromkeys(found))


def _not_trained_on(pipeline: Pipeline) -> list[str]:
    """Return one line on the records that did not fit into training, if there are any."""
    skipped = {}
    for unit in pipeline.units.values():
        manifest = read_manifest(pipeline.home.checkpoint(unit.arm, unit.seed))
        if manifest is not None and manifest.counts.get("skipped"):
            skipped[unit.key] = manifest.counts["skipped"]
    if not skipped:
        return []
    named = ", ".join(f"{key} {count:,}" for key, count in skipped.items())
    return [f"records that did not fit and were not trained on: {named}"]


def evaluations_without_score(pipeline: Pipeline) -> list[str]:
    """Return benchmarks that have outputs but no score, one line each."""
    lines: list[str] = []
    for unit in pipeline.units.values():
        manifest = read_manifest(pipeline.home.evaluation(unit.arm, unit.seed))
        for name in (manifest.details.get("unscored") or []) if manifest is not None else []:
            lines.append(f"benchmark {name} has answers but no score: it needs a judge")
    return list(dict.fromkeys(lines))


def versions(pipeline: Pipeline) -> Section:
    """Return which data, models and libraries the artefacts were made with."""
    libraries: dict[str, set[str]] = {}
    rows: list[list[Cell]] = []
    for name, folder in stages(pipeline):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        rows.append([name, manifest.digest[:12], manifest.created_at])
        for library, version in manifest.versions.items():
            libraries.setdefault(library, set()).add(version)
    blocks: list[Block] = [Table(["what", "identity"], _identities(pipeline))]
    versions_used: list[list[Cell]] = [
        [name, ", ".join(sorted(found))] for name, found in sorted(libraries.items())
    ]
    blocks.append(Table(["library", "version"], versions_used))
    blocks.append(Table(["artefact", "content (SHA-256)", "made"], rows))
    return Section("Versions", blocks)


def _identities(pipeline: Pipeline) -> list[list[Cell]]:
    """Return what data and models are known by."""
    rows: list[list[Cell]] = []
    raw = read_manifest(pipeline.home.raw)
    source = raw.details.get("source") if raw is not None else None
    if isinstance(source, dict):
        identity = source.get("sha256") or source.get("revision") or ""
        rows.append([f"dataset {local_name(pipeline.experiment.dataset.path)}", str(identity)])
    for model in pipeline.experiment.scoring_models:
        manifest = read_manifest(pipeline.home.scores(model.name))
        if manifest is not None:
            parameters = manifest.details.get("parameters")
            size = f"{parameters:,} parameters" if isinstance(parameters, int) else ""
            revision = manifest.details.get("revision") or "local files"
            rows.append([f"model {model.name}", f"{revision}; {size}".strip("; ")])
    return rows
