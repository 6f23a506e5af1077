"""The forest plot: differences from the baseline with their intervals."""

from __future__ import annotations

from typing import Any

from selectit_dagster.artefacts.figures import png_bytes

_MARKS = ("o", "s", "D", "^", "v", "P", "X", "h", "<")
# Okabe and Ito's colours, which colour-blind readers can tell apart
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#56B4E9", "#000000", "#7F7F7F", "#B8A500"),
)


def forest(details: dict[str, Any]) -> bytes:
    """Return a PNG: per benchmark and arm the difference, its interval, and zero.

    A filled mark is a difference that the test found, a hollow one is not.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    baseline = details["baseline"]
    arms = [arm for arm in details["arms"] if arm != baseline]
    rows = list(details["arms"][baseline]["results"])
    height = 1.3 + max(1, len(rows)) * (0.25 + 0.2 * max(1, len(arms)))
    figure = Figure(figsize=(7.2, min(height, 16.0)), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvline(0.0, color="#444444", linewidth=1)
    step = 0.8 / max(1, len(arms))
    for number, arm in enumerate(arms):
        colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
        for row, name in enumerate(rows):
            entry = details["arms"][arm]["results"][name]
            _interval(axes, entry, row - 0.4 + step * (number + 0.5), colour, mark)
        axes.plot([], [], mark, color=colour, label=details["arms"][arm]["title"])
    for row in range(1, len(rows)):
        axes.axhline(row - 0.5, color="#dddddd", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    title = details["arms"][baseline]["title"]
    scales = {entry["scale"] for entry in details["arms"][baseline]["results"].values()}
    unit = "points" if scales == {100} else "score (in hundredths where it lies between 0 and 1)"
    level = f"{details['method']['confidence']:.0%}"
    axes.set_xlabel(
        f"difference from {title}, {unit}, with {level} intervals\n"
        "filled: found by the test; hollow: not"
    )
    if arms:
        figure.legend(
            loc="outside upper left", ncols=min(3, len(arms)), frameon=False, fontsize="small"
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return png_bytes(figure)


def _interval(axes: Any, entry: dict[str, Any], at: float, colour: str, mark: str) -> None:  # noqa: ANN401
    scale = entry["scale"]
    filled = entry["verdict"] in {"better", "worse"}
    axes.plot([scale * entry["low"], scale * entry["high"]], [at, at], color=colour, linewidth=1.6)
    axes.plot(
        scale * entry["difference"],
        at,
        mark,
        color=colour,
        markerfacecolor=colour if filled else "white",
        markersize=6,
    )
