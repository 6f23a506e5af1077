"""The comparison as tables: every figure with the costs, and the paper's table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from selectit_dagster.comparison.costs import saving
from selectit_dagster.comparison.score_matrices import AVERAGE
from selectit_dagster.progress import duration

# Liu et al., SelectIT (NeurIPS 2024, arXiv 2402.16705), LLaMA-2-7B, means of three seeds
PUBLISHED_COLUMNS = ("MMLU", "BBH", "GSM", "TyDiQA", "CodeX", "AE", "AVG")
PUBLISHED: dict[str, tuple[float, ...]] = {
    "Alpaca-GPT4, all 52 K": (46.5, 38.4, 15.0, 43.4, 26.8, 34.2, 34.1),
    "LIMA": (45.4, 37.5, 14.3, 45.1, 24.6, 33.1, 33.3),
    "AlpaGasus": (45.9, 39.0, 14.5, 46.4, 27.5, 35.4, 34.8),
    "Q2Q": (46.9, 39.4, 15.3, 46.7, 28.2, 35.7, 35.4),
    "Instruction Mining": (47.0, 39.6, 16.5, 47.1, 28.6, 34.4, 35.5),
    "token level only": (46.8, 36.5, 14.5, 44.6, 28.9, 35.5, 34.5),
    "sentence level only": (46.9, 38.1, 16.1, 48.4, 26.9, 35.3, 35.3),
    "model level only": (47.3, 37.4, 16.1, 45.3, 28.4, 35.8, 35.1),
    "SelectIT": (47.4, 40.6, 16.8, 47.4, 29.4, 35.7, 36.2),
}
_OURS = {"gsm8k": "GSM", "humaneval": "CodeX", "alpaca-eval": "AE", "tydiqa": "TyDiQA"}
_ORDER = {"selectit": 0, "base": 2}
P_VALUES = ("p", "p (Holm)")


def result_rows(details: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per arm and benchmark: SelectIT first, the base model last."""
    level = f"{details.get('method', {}).get('confidence', 0.95):.0%} interval"
    against = f"against {details.get('baseline')}"
    rows = []
    for arm, entry in sorted(details.get("arms", {}).items(), key=lambda a: _ORDER.get(a[0], 1)):
        for name, result in entry.get("results", {}).items():
            scale, differs = result.get("scale", 1), "difference" in result
            low, high = result["interval"]
            rows.append(
                {
                    "arm": arm,
                    "benchmark": name,
                    "runs": entry.get("runs"),
                    "score": _shown(result["mean"], scale),
                    level: _span(low, high, scale),
                    against: _shown(result["difference"], scale, "+") if differs else "",
                    f"its {level}": _span(result["low"], result["high"], scale) if differs else "",
                    P_VALUES[0]: _p(result["p"]) if differs else "",
                    P_VALUES[1]: _p(result["p_holm"]) if differs else "",
                    "verdict": result.get("verdict", "baseline"),
                    "minimum detectable effect": (
                        _shown(result["smallest_detectable"], scale) if differs else ""
                    ),
                }
            )
    return rows


def comparison_table(details: dict[str, Any]) -> str:
    """Return Markdown: what was found, every figure, and the costs."""
    rows = result_rows(details)
    lines = ["# Comparison of the arms", ""]
    lines += [f"- {sentence}" for sentence in details["sentences"]]
    lines += ["", *_table(list(rows[0]), [list(row.values()) for row in rows]), ""]
    lines += [f"- {note}" for note in details["method"]["notes"]]
    return "\n".join([*lines, *cost_lines(details.get("costs", []))]) + "\n"


def cost_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the Markdown lines of the cost table; none when nothing is known."""
    if not rows:
        return []
    columns = ["stage", "of", "runs", "time", "tokens", "device-hours", "arithmetic"]
    cells = [
        [
            row["what"],
            row["name"],
            row["runs"],
            duration(row["seconds"]),
            f"{row['tokens']:,}" if row["tokens"] else "",
            f"{row['device_hours']:.3g} {row['device']}-hours",
            _operations(row["operations"]),
        ]
        for row in rows
    ]
    note = (
        "Arithmetic: floating-point operations, estimated from parameters and tokens. Energy "
        "goes with it and with the device-hours: hours times the device's watts."
    )
    sentence = saving(rows)
    lines = ["", "## Costs", "", *_table(columns, cells), "", note]
    return [*lines, "", sentence] if sentence else lines


def _operations(value: float) -> str:
    units = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9))
    name, size = next((unit for unit in units if value >= unit[1]), units[-1])
    return f"{value / size:.3g} {name}FLOP" if value else ""


def paper_table(details: dict[str, Any]) -> str:
    """Return Markdown in the paper's format: one row per system, average, difference.

    The published rows stand beside ours when the base model is the paper's.
    """
    names = list(details["benchmarks"])
    shown = list(details["arms"][details["baseline"]]["results"])
    last = shown[-1] if shown else ""
    rows = []
    for arm, entry in details["arms"].items():
        results = entry["results"]
        cells = [_shown(results[name]["mean"], results[name]["scale"]) for name in shown]
        gap = results.get(last, {}).get("difference")
        rows.append([arm, *cells, "" if gap is None else f"{results[last]['scale'] * gap:+.1f}"])
    published = is_published_model(details["base_model"])
    if published:
        rows += _published_rows(names, AVERAGE in shown)
    columns = ["system", *("AVG" if name == AVERAGE else name for name in shown), "Δ"]
    lines = [*_table(columns, rows), ""]
    lines.append(f"Δ: difference from {details['baseline']} in the last column before it.")
    if published:
        lines += ["", "Published rows: SelectIT, NeurIPS 2024, LLaMA-2-7B, means of three seeds."]
        remarks = [r for entry in details["benchmarks"].values() for r in entry["unlike_the_paper"]]
        if remarks:
            lines += ["", "Not asked as in the paper, so compare with care:", ""]
            lines += [f"- {remark}" for remark in remarks]
    return "\n".join(lines) + "\n"


def is_published_model(name: str) -> bool:
    """Tell whether the base model is LLaMA-2-7B, by the last part of its path or name."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return re.fullmatch(r"llama-?2-7b(-hf)?", last, flags=re.IGNORECASE) is not None


def _published_rows(names: Sequence[str], several: bool) -> list[list[str]]:
    """Return the paper's rows under our columns; its average only where they are its six."""
    wanted = [_OURS.get(name.lower(), name.upper()).upper() for name in names]
    known = [column.upper() for column in PUBLISHED_COLUMNS]
    rows = []
    for system, values in PUBLISHED.items():
        cells = [f"{values[known.index(name)]:.1f}" if name in known else "" for name in wanted]
        if several:
            cells.append(f"{values[-1]:.1f}" if set(wanted) == set(known[:-1]) else "")
        rows.append([f"{system} (published)", *cells, ""])
    return rows


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def _shown(value: float, scale: float, sign: str = "") -> str:
    return f"{scale * value:{sign}.1f}" if scale == 100 else f"{value:{sign}.4g}"


def _span(low: float, high: float, scale: float) -> str:
    return f"{_shown(low, scale)} to {_shown(high, scale)}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
