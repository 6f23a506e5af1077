"""What scoring and tuning took, beside what they brought.

Time alone says little of energy, so every row also has the hours of devices and the
arithmetic. A forward pass takes about two operations per parameter and token; a backward pass
as much for the activations and as much again for the weights, which LoRA leaves out;
recomputing the activations is one more forward pass (Kaplan et al. 2020, section 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from selectit_dagster.progress import duration

_PASSES = {"full": 6, "lora": 4, "qlora": 4}


def cost_rows(costs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per scoring model and tuned arm, and one that adds each arm's up.

    Parameters
    ----------
    costs:
        ``scoring``: {model: run}, ``tuning``: {arm: [run, ...]}, ``choosing``: {arm:
        {``seconds``, ``models``}}, the scoring models that an arm's choice rests on. A run
        has ``seconds`` and ``device`` and may have ``tokens``, ``processes`` (or ``workers``)
        and, for the arithmetic, ``parameters``, ``method`` and ``recomputed``.

    Returns
    -------
    rows
        ``what`` (``scoring``, ``tuning`` or ``in all``), ``name``, ``runs``, ``seconds``,
        ``tokens``, ``device_hours`` of ``device`` (``GPU`` or ``CPU``), and ``operations``
        (floating-point operations; 0 where the model's size is not known).
    """
    scoring = {name: _row("scoring", name, [run]) for name, run in costs.get("scoring", {}).items()}
    tuning = {arm: _row("tuning", arm, runs) for arm, runs in costs.get("tuning", {}).items()}
    totals = []
    for arm, row in tuning.items():
        choosing = costs.get("choosing", {}).get(arm)
        if choosing is not None:
            behind = [scoring[name] for name in choosing["models"] if name in scoring]
            totals.append(_total(arm, [*behind, row], float(choosing["seconds"])))
    return [*scoring.values(), *tuning.values(), *totals]


def _row(what: str, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = sum(float(run["seconds"]) for run in runs)
    hours = sum(float(run["seconds"]) * _devices(run) for run in runs) / 3600
    devices = {str(run.get("device", "")).split(":")[0] for run in runs}
    return {
        "what": what,
        "name": name,
        "runs": len(runs),
        "seconds": round(seconds, 3),
        "tokens": int(sum(int(run.get("tokens") or 0) for run in runs)),
        "device_hours": hours,
        "device": "GPU" if devices & {"cuda", "mps"} else "CPU",
        "operations": float(sum(_operations(run) for run in runs)),
    }


def _devices(run: dict[str, Any]) -> int:
    # several workers on a CPU share its cores, so they are one device
    if str(run.get("device", "")).startswith("cuda"):
        return int(run.get("processes") or run.get("workers") or 1)
    return 1


def _operations(run: dict[str, Any]) -> float:
    parameters = float(run.get("base_parameters") or run.get("parameters") or 0)
    passes = _PASSES[run["method"]] if "method" in run else 2
    if run.get("recomputed"):
        passes += 2
    # what was computed: padding counts, a shared prefix only once
    tokens = float(run.get("token_positions") or run.get("tokens") or 0)
    return passes * parameters * tokens


def _total(arm: str, parts: Sequence[dict[str, Any]], choosing: float) -> dict[str, Any]:
    total = {n: sum(part[n] for part in parts) for n in ("tokens", "operations", "device_hours")}
    return {
        **total,
        "what": "in all",
        "name": arm,
        "runs": parts[-1]["runs"],
        "seconds": round(sum(part["seconds"] for part in parts) + choosing, 3),
        "device_hours": total["device_hours"] + choosing / 3600,
        "device": " and ".join(sorted({part["device"] for part in parts})),
    }


def saving(rows: Sequence[dict[str, Any]]) -> str:
    """Return what the selection cost and saved against full tuning; empty when unknown."""
    scoring = sum(row["seconds"] for row in rows if row["what"] == "scoring")
    tuning = {row["name"]: row["seconds"] / row["runs"] for row in rows if row["what"] == "tuning"}
    if not scoring or not {"selectit", "full"} <= tuning.keys():
        return ""
    spared = tuning["full"] - tuning["selectit"]
    text = (
        f"Scoring took {duration(scoring)}; a run tuned on the selection took "
        f"{duration(tuning['selectit'])} instead of {duration(tuning['full'])}, "
    )
    if spared <= 0:
        return text + "so nothing was saved."
    runs = scoring / spared
    many = "run" if runs <= 1 else "runs"
    return text + f"so the scoring pays for itself after {max(1, math.ceil(runs))} {many}."
