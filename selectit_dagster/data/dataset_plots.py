"""Plots of a dataset: lengths, languages, inputs and turns, and what the steps of curation dropped.

Each function takes ``details`` of a manifest (and its counts) and returns PNG bytes,
small enough for an asset's page. Colours are those of the Okabe-Ito palette.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selectit_dagster.artefacts.figures import png_bytes

_COLOURS = {"instruction": "#0072B2", "input": "#E69F00", "response": "#009E73"}
_GREY = "#999999"


def lengths_plot(profile: dict[str, Any]) -> bytes:
    """Return histograms of the lengths, one panel per part of the record.

    In tokens (of the sample) where they were counted, else in characters.

    Parameters
    ----------
    profile:
        ``details["profile"]`` of the raw or the curated dataset.
    """
    from matplotlib.figure import Figure

    in_tokens = "words" not in profile["token_unit"]
    unit, key = ("tokens", "token_histograms") if in_tokens else ("characters", "histograms")
    names = [name for name in _COLOURS if name != "input" or profile["with_input"]]
    figure = Figure(figsize=(3.2 * len(names), 2.6))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(panels, names, strict=True):
        histogram = profile[key][name]
        axis.stairs(histogram["counts"], histogram["edges"], fill=True, color=_COLOURS[name])
        median = profile[unit][name]["p50"]
        axis.axvline(median, color="black", linewidth=1, linestyle="--")
        axis.set_title(f"{name} (median {median:,})", fontsize=9)
        axis.set_xlabel(f"{unit}, up to the 99th percentile", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("sampled records" if in_tokens else "records", fontsize=8)
    figure.tight_layout()
    return png_bytes(figure)


def _bars(labels: list[str], values: Sequence[float], colours: list[str], what: str) -> bytes:
    """Return horizontal bars with their values, the first on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(labels)))
    axis = figure.subplots()
    bars = axis.barh(range(len(labels)), values, color=colours)
    axis.bar_label(bars, [f"{value:,}" for value in values], padding=3, fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(what, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return png_bytes(figure)


def shares_plot(profile: dict[str, Any]) -> bytes:
    """Return languages (at most eight), records with and without input, and turns as bars."""
    from selectit_dagster.data.profile import share_table

    colours = {"language": "#0072B2", "input": "#E69F00", "turns": "#009E73"}
    rows = [row for row in share_table(profile) if row["what"] in colours]
    languages = [row for row in rows if row["what"] == "language"][:8]
    rows = [*languages, *(row for row in rows if row["what"] != "language")]
    labels = [f"{row['what']}: {row['which']}" for row in rows]
    values = [round(100 * row["records"] / row["of"], 1) for row in rows]
    return _bars(labels, values, [colours[row["what"]] for row in rows], "% of the records")


def curation_plot(counts: dict[str, int], details: dict[str, Any]) -> bytes:
    """Return what each step found, coloured by whether it dropped or only flagged."""
    rows = [row for row in details["steps"] if row["setting"] not in {"off", "ignore"}]
    labels = ["kept", *(f"{row['step']} ({row['setting']})" for row in rows)]
    values = [counts["kept"], *(row["found"] for row in rows)]
    drop, flag = "#D55E00", _GREY
    colours = ["#009E73", *(drop if row["setting"] == "drop" else flag for row in rows)]
    return _bars(labels, values, colours, f"records, of {counts['raw']:,}")
