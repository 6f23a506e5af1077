"""What scoring, choosing and tuning took, gathered from the manifests that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.orchestration.partitions import group_of

if TYPE_CHECKING:
    from selectit_dagster.experiment import Arm
    from selectit_dagster.orchestration.stages.stage_factory import Wiring

_FACTS = (
    *("seconds", "tokens", "token_positions", "device", "processes", "workers"),
    *("parameters", "base_parameters", "method", "recomputed"),
)


def stored_costs(line: Wiring) -> dict[str, Any]:
    """Return the costs for ``ComparisonRequest.costs``; see ``comparison.costs.cost_rows``."""
    scoring = {}
    for model in line.experiment.scoring_models:
        if (manifest := read_manifest(line.home.scores(model.name))) is not None:
            scoring[model.name] = _facts({"seconds": manifest.seconds, **manifest.details})
    return {"scoring": scoring, "choosing": _choosing(line), "tuning": _tuning(line)}


def _choosing(line: Wiring) -> dict[str, dict[str, Any]]:
    """Return, per arm, how long its choice took and the models whose scores it rests on."""
    entries: dict[str, dict[str, Any]] = {}
    for name, (arm, _) in line.arms.items():
        if (manifest := read_manifest(line.home.selected(name))) is not None:
            entry = entries.setdefault(group_of(name), {"seconds": 0.0, "models": []})
            entry["seconds"] += manifest.seconds
            entry["models"] = _models_behind(line, arm)
    return entries


def _models_behind(line: Wiring, arm: Arm) -> list[str]:
    names = [model.name for model in line.experiment.scoring_models]
    if arm.kind == "selectit":
        return names
    if arm.kind not in ("token-level", "sentence-level"):
        return []
    ranking = read_manifest(line.home.ranking)
    if arm.model is not None or ranking is None:
        return [arm.model] if arm.model else []
    theta: dict[str, float] = ranking.details["theta"]
    return [max(sorted(theta), key=lambda name: theta[name])]


def _tuning(line: Wiring) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for unit in line.units.values():
        if (manifest := read_manifest(line.home.checkpoint(unit.arm, unit.seed))) is not None:
            facts = {"seconds": manifest.seconds, **manifest.details, **manifest.counts}
            runs.setdefault(group_of(unit.arm), []).append(_facts(facts))
    return runs


def _facts(details: dict[str, Any]) -> dict[str, Any]:
    return {name: details[name] for name in _FACTS if details.get(name) is not None}
