"""The comparison as tables: ours, and the paper's format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from selectit_dagster.comparison.costs import cost_lines
from selectit_dagster.comparison.score_matrices import AVERAGE

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


def comparison_table(details: dict[str, Any]) -> str:
    """Return Markdown: what was found, every figure, and the costs."""
    lines = ["# Comparison of the arms", ""]
    lines += [f"- {sentence}" for sentence in details["sentences"]]
    baseline = details["arms"][details["baseline"]]["title"]
    level = f"{details['method']['confidence']:.0%}"
    lines += [
        "",
        f"Differences are from {baseline}; intervals at {level}.",
        "",
        "| arm | benchmark | runs | score | interval | difference | interval | p | p (Holm) "
        "| minimum detectable effect | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, entry in details["arms"].items():
        for name, result in entry["results"].items():
            lines.append(_row(arm, entry["runs"], name, result))
    lines += ["", *(f"- {note}" for note in details["method"]["notes"])]
    return "\n".join([*lines, *cost_lines(details.get("costs", []))]) + "\n"


def _row(arm: str, runs: int, name: str, result: dict[str, Any]) -> str:
    scale = result["scale"]
    cells = [arm, name, str(runs), _shown(result["mean"], scale), _span(result["interval"], scale)]
    if "difference" in result:
        cells += [
            f"{scale * result['difference']:+.1f}",
            _span([result["low"], result["high"]], scale),
            _p(result["p"]),
            _p(result["p_holm"]),
            _shown(result["smallest_detectable"], scale),
            result["verdict"],
        ]
    else:
        cells += ["", "", "", "", "", "baseline"]
    return f"| {' | '.join(cells)} |"


def paper_table(details: dict[str, Any]) -> str:
    """Return Markdown in the paper's format: one row per system, average, difference.

    The published rows stand beside ours when the base model is the paper's.
    """
    names = list(details["benchmarks"])
    baseline = details["arms"][details["baseline"]]["results"]
    several = AVERAGE in baseline
    columns = [*names, *(["AVG"] if several else []), "Δ"]
    lines = [_line(["system", *columns]), _line(["---"] * (len(columns) + 1))]
    last = AVERAGE if several else (names[0] if names else "")
    for arm, entry in details["arms"].items():
        results = entry["results"]
        cells = [_shown(results[name]["mean"], results[name]["scale"]) for name in names]
        if several:
            cells.append(_shown(results[AVERAGE]["mean"], results[AVERAGE]["scale"]))
        gap = results.get(last, {}).get("difference")
        cells.append("" if gap is None else f"{results[last]['scale'] * gap:+.1f}")
        lines.append(_line([arm, *cells]))
    if is_published_model(details["base_model"]):
        lines += _published_rows(names, several)
    text = f"Δ: difference from {details['baseline']} in the last column before it.\n"
    return "\n".join(lines) + f"\n\n{text}" + _published_note(details)


def is_published_model(name: str) -> bool:
    """Tell whether the base model is LLaMA-2-7B, by the last part of its path or name."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return re.fullmatch(r"llama-?2-7b(-hf)?", last, flags=re.IGNORECASE) is not None


def _published_rows(names: Sequence[str], several: bool) -> list[str]:
    wanted = [_OURS.get(name.lower(), name.upper()).upper() for name in names]
    known = [column.upper() for column in PUBLISHED_COLUMNS]
    rows = []
    for system, values in PUBLISHED.items():
        cells = [f"{values[known.index(name)]:.1f}" if name in known else "" for name in wanted]
        rows.append(_line([f"{system} (published)", *cells, *(_mean(values, wanted, several)), ""]))
    return rows


def _mean(values: Sequence[float], wanted: Sequence[str], several: bool) -> list[str]:
    """Return the published average, where our columns are the paper's six."""
    if not several:
        return []
    paper = {column.upper() for column in PUBLISHED_COLUMNS[:-1]}
    return [f"{values[-1]:.1f}" if set(wanted) == paper else ""]


def _published_note(details: dict[str, Any]) -> str:
    if not is_published_model(details["base_model"]):
        return ""
    lines = ["Published rows: SelectIT, NeurIPS 2024, LLaMA-2-7B, means of three seeds."]
    remarks = [r for entry in details["benchmarks"].values() for r in entry["unlike_the_paper"]]
    if remarks:
        lines += ["", "Not asked as in the paper, so compare with care:", ""]
        lines += [f"- {remark}" for remark in remarks]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: float, scale: float) -> str:
    return f"{scale * value:.1f}" if scale == 100 else f"{value:.4g}"


def _span(interval: Sequence[float], scale: float) -> str:
    return f"{_shown(interval[0], scale)} to {_shown(interval[1], scale)}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
