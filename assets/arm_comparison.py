"""Comparison of the arms, on the same questions, with intervals."""

from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest, require_manifest
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import Metadata, details
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import no_metrics, save_arms_view
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun, numbers


def build(pipeline: Pipeline, access: Access) -> dg.AssetsDefinition:
    """Return the asset that compares the arms."""
    page = Page(
        describe=_describe,
        metrics=no_metrics,
        track=lambda run, stage, manifest: _track(pipeline, run, stage, manifest),
    )

    @stage_asset(
        access,
        asset_keys.COMPARISON,
        page,
        deps=[asset_keys.EVALUATIONS, asset_keys.UNTUNED, asset_keys.CHECKPOINTS],
        group=asset_keys.VERDICT,
        kinds={"python"},
    )
    def arm_comparison(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Say with intervals which arm beat which, on the same questions.

        Paired over questions and resampled over training seeds. Where there is no
        significant difference it says so, with the minimum detectable effect.
        """
        return run_asset(context, access, page, lambda now: now.comparison())

    return arm_comparison


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the tables of the arms and the facts."""
    shown: Metadata = {}
    for name in ("table.md", "paper_table.md"):
        path = stage.folder / name
        if path.exists():
            text = path.read_text(encoding="utf-8")
            shown[name.removesuffix(".md")] = dg.MetadataValue.md(text)
    shown["comparison"] = details(manifest)
    return shown


def _track(pipeline: Pipeline, run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the comparison and give the best adapter its alias."""
    for path in sorted(stage.folder.iterdir()):
        if path.suffix in {".md", ".json"} and path.name != "manifest.json":
            run.artifact(path, "comparison")
    run.arms({arm: _row(entry) for arm, entry in manifest.details.get("arms", {}).items()})
    save_arms_view(run, [benchmark.name for benchmark in pipeline.experiment.benchmarks])
    # the arms on each benchmark, rather than this comparison beside earlier ones
    if (link := run.tracker.comparison_link(asset_keys.EVALUATIONS)) is not None:
        run.links["mlflow_comparison"] = link
    champion = manifest.details.get("champion")
    if isinstance(champion, dict) and champion.get("arm") not in (None, "base"):
        card, tags = champion_card(champion, manifest)
        run.champion(pipeline.experiment.name, champion_model(champion), card, tags)


def champion_card(champion: dict[str, Any], manifest: Manifest) -> tuple[str, dict[str, str]]:
    """Return what the registry says of the champion: its figures, why, and on which data."""
    low, high = champion.get("interval") or (champion["average"], champion["average"])
    figures = [f"- {name}: {value:.4f}" for name, value in champion.get("scores", {}).items()]
    version = require_manifest(Path(champion["evaluation"]), made_by=asset_keys.EVALUATIONS).digest
    lines = [
        f"Champion: arm {champion['arm']}, training seed {champion['seed']}.",
        f"Average score {champion['average']:.4f}; its arm's mean {champion['arm_average']:.4f} "
        f"({low:.4f} to {high:.4f}).",
        *figures,
        f"Reason: {champion.get('reason', '')}",
        f"Data version: evaluation {version[:16]}, comparison {manifest.digest[:16]}.",
    ]
    tags = {
        "arm": str(champion["arm"]),
        "seed": str(champion["seed"]),
        "score": f"{champion['average']:.6f}",
        "interval": f"{low:.6f} to {high:.6f}",
        "data_version": version,
        "chosen_on": "the reported test questions",
    }
    return "\n".join(lines), tags


def _row(arm: dict[str, Any]) -> dict[str, float]:
    """Return an arm's mean score on each benchmark, its interval and its difference."""
    row: dict[str, float] = {}
    for name, result in arm.get("results", {}).items():
        lower, upper = result.get("interval") or (None, None)
        row |= numbers({name: result.get("mean"), f"{name}.lower": lower, f"{name}.upper": upper})
        row |= numbers({f"{name}.difference": result.get("difference")})
    return row


def champion_model(champion: dict[str, Any]) -> str:
    """Return the logged model's name of the champion's checkpoint.

    From its evaluation's folder, ``<arm>/seed-N``: two random draws may share a training seed.
    """
    folder = Path(champion["evaluation"])
    return f"{folder.parent.name}-{folder.name}"
