"""What the figures say, in plain words: one sentence per arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SHARES = {0.5: "half", 0.25: "quarter", 0.2: "fifth", 0.1: "tenth", 0.05: "twentieth"}


def share_in_words(share: float | None) -> str:
    """Return the selected share as it stands in a sentence ("fifth")."""
    return _SHARES.get(round(share, 4), f"{share:.1%} share") if share else "choice"


def arm_sentence(arm: str, baseline: str, entries: Sequence[dict[str, Any]]) -> str:
    """Return one sentence on one arm over all benchmarks.

    ``entries`` are the arm's benchmark results; see ``compare`` for their keys.
    """
    claims = [entry for entry in entries if entry["verdict"] in {"better", "worse"}]
    open_ones = [entry for entry in entries if entry["verdict"] not in {"better", "worse"}]
    parts = [_clause(baseline if at == 0 else "it", entry) for at, entry in enumerate(claims)]
    if open_ones:
        alone = len(open_ones) == 1
        effects = ", ".join(
            ("" if alone else f"{entry['benchmark']} ")
            + _points(entry["smallest_detectable"], entry)
            for entry in open_ones
        )
        against = "" if claims else f" between {arm} and {baseline}"
        where = _listed([entry["benchmark"] for entry in open_ones])
        parts.append(
            f"no significant difference{against} on {where} "
            f"(minimum detectable effect at 80 % power: {effects})"
        )
    if not parts:
        return f"{_capital(arm)} could not be compared with {baseline}."
    text = "; ".join(parts)
    return f"{_capital(arm)} {text}." if claims else f"{_capital(text)}."


def _clause(baseline: str, entry: dict[str, Any]) -> str:
    low, high = sorted((abs(entry["low"]), abs(entry["high"])))
    size = f"{_points(abs(entry['difference']), entry)} ({_number(low, entry)} to "
    verb = "beats" if entry["verdict"] == "better" else "falls behind"
    return f"{verb} {baseline} on {entry['benchmark']} by {size}{_number(high, entry)})"


def _points(value: float, entry: dict[str, Any]) -> str:
    number = _number(value, entry)
    if entry["scale"] != 100:
        return number
    return f"{number} point" if number == "1.0" else f"{number} points"


def _number(value: float, entry: dict[str, Any]) -> str:
    return f"{entry['scale'] * value:.1f}" if entry["scale"] == 100 else f"{value:.4g}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
