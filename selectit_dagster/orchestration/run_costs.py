"""What scoring, choosing and tuning took, as manifests say it, and the budget of scoring."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.artefacts.manifest import Manifest, read_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.progress import Progress

if TYPE_CHECKING:
    from selectit_dagster.experiment import Experiment
    from selectit_dagster.orchestration.stages.stage import StageFactory
    from selectit_dagster.selection.arms.arm import Arm

_FACTS = (
    *("seconds", "tokens", "token_positions", "device", "processes", "workers"),
    *("parameters", "base_parameters", "method", "recomputed"),
)


def stored_costs(pipeline: StageFactory) -> dict[str, Any]:
    """Return the costs for ``ComparisonRequest.costs``; see ``comparison.costs.cost_rows``."""
    scoring = {}
    for model in pipeline.experiment.scoring_models:
        if (manifest := read_manifest(pipeline.home.scores(model.name))) is not None:
            scoring[model.name] = _facts({"seconds": manifest.seconds, **manifest.details})
    return {"scoring": scoring, "choosing": _choosing(pipeline), "tuning": _tuning(pipeline)}


def _choosing(pipeline: StageFactory) -> dict[str, dict[str, Any]]:
    """Return, per arm, how long its choice took and the models whose scores it rests on."""
    entries: dict[str, dict[str, Any]] = {}
    for name, (arm, _) in pipeline.arms.items():
        if (manifest := read_manifest(pipeline.home.selected(name))) is not None:
            entry = entries.setdefault(arm.name, {"seconds": 0.0, "models": []})
            entry["seconds"] += manifest.seconds
            entry["models"] = _models_behind(pipeline, arm)
    return entries


def _models_behind(pipeline: StageFactory, arm: Arm) -> list[str]:
    """Return the scoring models whose stored scores the arm's order takes."""
    if "scores" not in arm.needed:
        return []
    names = tuple(model.name for model in pipeline.experiment.scoring_models)
    ranking = read_manifest(pipeline.home.ranking)
    if ranking is None:
        return list(arm.scoring_models(names))
    theta: dict[str, float] = ranking.details["theta"]
    return list(arm.scoring_models(tuple(sorted(theta, key=lambda name: (-theta[name], name)))))


def _tuning(pipeline: StageFactory) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for unit in pipeline.units.values():
        if (manifest := read_manifest(pipeline.home.checkpoint(unit.arm, unit.seed))) is not None:
            facts = {"seconds": manifest.seconds, **manifest.details, **manifest.counts}
            runs.setdefault(unit.group, []).append(_facts(facts))
    return runs


def _facts(details: dict[str, Any]) -> dict[str, Any]:
    return {name: details[name] for name in _FACTS if details.get(name) is not None}


class _Budgeted:
    """Progress that stops the work when ``before`` and what it takes reach ``limit`` seconds."""

    def __init__(self, progress: Progress, model: str, before: float, limit: float) -> None:
        self.progress, self.model, self.before, self.limit = progress, model, before, limit
        self.started = time.monotonic()

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.started

    def update(self, done: int, total: int, **figures: float) -> None:
        self.progress.update(done, total, **figures)
        if self.spent >= self.limit and done < total:
            raise UserError(
                f"the budget is used up after {self.spent / 3600:.3g} hours of scoring: model "
                f"{self.model} has {done:,} of {total:,} ratings, and they are kept",
                hint="raise budget in the experiment and run again: it goes on from there",
            )


def within_budget(
    experiment: Experiment,
    folder: Path,
    model: str,
    progress: Progress,
    work: Callable[[Progress], Manifest],
) -> Manifest:
    """Do the work of scoring with one model; it stops cleanly when the budget is used up.

    ``folder`` is the experiment's; what was spent is kept there, over all models and runs.
    """
    limit = experiment.budget_seconds
    if limit is None:
        return work(progress)
    path = folder / "spent.json"
    before = float(read_json(path)["scoring_seconds"]) if path.exists() else 0.0
    watch = _Budgeted(progress, model, before, limit)
    try:
        return work(watch)
    finally:
        write_json(path, {"scoring_seconds": watch.spent})
