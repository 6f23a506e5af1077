"""Comparison of the arms, on the same questions, with intervals."""

from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest, require_manifest
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Made
from selectit_dagster.orchestration.asset_metadata import Metadata
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import ARM_ROWS, TrackedRun, numbers


class ArmComparison(StageAsset):
    """Say with intervals which arm beat which, on the same questions.

    Paired over questions and resampled over training seeds. Where there is no
    significant difference it says so, with the minimum detectable effect.
    """

    name = asset_keys.COMPARISON
    group = asset_keys.VERDICT
    deps = (asset_keys.EVALUATIONS, asset_keys.UNTUNED, asset_keys.CHECKPOINTS)

    def stage(self, asked: Asked) -> Stage:
        """Compare the arms."""
        return asked.pipeline.comparison()

    def describe(self, made: Made) -> Metadata:
        """Show the tables of the arms and the facts."""
        paths = [made.folder / name for name in ("table.md", "paper_table.md")]
        shown: Metadata = {
            path.stem: dg.MetadataValue.md(path.read_text(encoding="utf-8"))
            for path in paths
            if path.exists()
        }
        return {**shown, "comparison": dg.MetadataValue.json(made.details)}

    def metrics(self, made: Made) -> dict[str, float]:
        """Return none: each arm has a row of its own."""
        return {}

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log the comparison, a row for each arm, and give the best adapter its alias."""
        for path in sorted(made.folder.iterdir()):
            if path.suffix in {".md", ".json"} and path.name != "manifest.json":
                run.artifact(path, "comparison")
        run.arms({arm: _row(entry) for arm, entry in made.details.get("arms", {}).items()})
        columns = [
            f"metrics.{benchmark.name}{end}"
            for benchmark in self.experiment.benchmarks
            for end in ("", ".lower", ".upper", ".difference")
        ]
        tracker = run.tracker
        if run.run_id and (view := tracker.save_view("arms", ARM_ROWS, columns)) is not None:
            run.links["mlflow_arms"] = view
        # the arms on each benchmark, rather than this comparison beside earlier ones
        if (link := tracker.comparison_link(asset_keys.EVALUATIONS)) is not None:
            run.links["mlflow_comparison"] = link
        champion = made.details.get("champion")
        if isinstance(champion, dict) and champion.get("arm") not in (None, "base"):
            evaluation = evaluation_of(champion, made.stage)
            card, tags = champion_card(champion, evaluation, made.manifest)
            run.champion(self.experiment.name, champion_model(champion), card, tags)


def evaluation_of(champion: dict[str, Any], stage: Stage) -> Path:
    """Return the champion's evaluation in this home, which may lie elsewhere since."""
    place = Path(champion["evaluation"]).parts[-3:]
    return next(folder for folder in stage.inputs if folder.parts[-3:] == place)


def champion_card(
    champion: dict[str, Any], evaluation: Path, manifest: Manifest
) -> tuple[str, dict[str, str]]:
    """Return what the registry says of the champion: its figures, why, and on which data."""
    low, high = champion.get("interval") or (champion["average"], champion["average"])
    figures = [f"- {name}: {value:.4f}" for name, value in champion.get("scores", {}).items()]
    version = require_manifest(evaluation, made_by=asset_keys.EVALUATIONS).digest
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
    row: dict[str, Any] = {}
    for name, result in arm.get("results", {}).items():
        lower, upper = result.get("interval") or (None, None)
        row |= {name: result.get("mean"), f"{name}.difference": result.get("difference")}
        row |= {f"{name}.lower": lower, f"{name}.upper": upper}
    return numbers(row)


def champion_model(champion: dict[str, Any]) -> str:
    """Return the logged model's name of the champion's checkpoint.

    From its evaluation's folder, ``<arm>/seed-N``: two random draws may share a training seed.
    """
    folder = Path(champion["evaluation"])
    return f"{folder.parent.name}-{folder.name}"
