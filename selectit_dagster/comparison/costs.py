"""What scoring and tuning took, beside what they brought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from selectit_dagster.progress import duration


def cost_rows(costs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per scoring model and per arm, its runs added up.

    Parameters
    ----------
    costs:
        ``scoring``: {model: run}, ``tuning``: {arm: [run, ...]}; a run has ``seconds`` and
        ``device`` and may have ``tokens`` and ``processes``.

    Returns
    -------
    rows
        ``what``, ``name``, ``runs``, ``seconds``, ``tokens``, ``device_hours``, ``device``
        (``GPU`` or ``CPU``): hours of devices, which is what energy goes with.
    """
    rows = [_row("scoring", name, [run]) for name, run in costs.get("scoring", {}).items()]
    return rows + [_row("tuning", arm, runs) for arm, runs in costs.get("tuning", {}).items()]


def _row(what: str, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = sum(float(run["seconds"]) for run in runs)
    hours = sum(float(run["seconds"]) * int(run.get("processes", 1)) for run in runs) / 3600
    devices = {str(run.get("device", "")).split(":")[0] for run in runs}
    return {
        "what": what,
        "name": name,
        "runs": len(runs),
        "seconds": round(seconds, 3),
        "tokens": int(sum(int(run.get("tokens") or 0) for run in runs)),
        "device_hours": hours,
        "device": "GPU" if devices & {"cuda", "mps"} else "CPU",
    }


def cost_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the Markdown lines of the cost table; none when nothing is known."""
    if not rows:
        return []
    lines = [
        "",
        "## Costs",
        "",
        "| stage | of | runs | time | tokens | device-hours |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        tokens = f"{row['tokens']:,}" if row["tokens"] else ""
        lines.append(
            f"| {row['what']} | {row['name']} | {row['runs']} | {duration(row['seconds'])} "
            f"| {tokens} | {row['device_hours']:.3g} {row['device']}-hours |"
        )
    sentence = saving(rows)
    return [*lines, "", sentence] if sentence else lines


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
