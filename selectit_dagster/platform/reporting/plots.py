"""Score plots from a sample of ranked records; every function returns a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.platform.reporting.records import Floats, Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#9a9a9a"


def score_plots(sample: Sample, selected: int) -> list[tuple[str, bytes, str]]:
    """Return (title, PNG, what it shows) of every plot; ``selected`` is the selection's size."""
    found = [
        (
            "Scores per level",
            levels(sample, selected),
            "Token level, sentence level and the fused score with the selected records.",
        ),
        (
            "Disagreement between prompts",
            prompt_disagreement(sample),
            "The more the prompts disagree about a record, the more its score is lowered.",
        ),
    ]
    if (png := model_disagreement(sample, selected)) is not None:
        text = "Each point is a record; records off the diagonal divide the models."
        found.append(("Agreement between models", png, text))
    text = "Each point is a record; a strong correlation would mean that length is what counts."
    found.append(("Length against score", length_against_score(sample, selected), text))
    return found


def levels(sample: Sample, selected: int) -> bytes:
    """Draw the distribution of the scores at each level, the last one with the selection."""
    figure, axes = _figure(3, 5.6)
    _outlines(axes[0], {model: tokens.ravel() for model, tokens in sample.tokens.items()})
    _outlines(axes[1], sample.sentence)
    axes[0].set_title("token level: one score per record and rating prompt", fontsize=9)
    axes[1].set_title("sentence level: one score per record and model", fontsize=9)
    axes[2].set_title("model level: the fused score that ranks", fontsize=9)
    chosen = sample.rank <= selected
    edges = np.histogram_bin_edges(sample.score, _bins(sample.score))
    axes[2].hist(
        [sample.score[chosen], sample.score[~chosen]],
        edges,
        stacked=True,
        color=[_COLOURS[0], "#c8c8c8"],
        label=["selected", "not selected"],
    )
    for axis in axes:
        axis.set_ylabel("records", fontsize=8)
        axis.legend(frameon=False, fontsize=8)
    axes[2].set_xlabel("score")
    return _png(figure)


def prompt_disagreement(sample: Sample) -> bytes:
    """Draw how far the rating prompts disagree about a record, per model."""
    figure, (axis,) = _figure(1, 2.6)
    _outlines(axis, {model: tokens.std(axis=1) for model, tokens in sample.tokens.items()})
    axis.set_xlabel("standard deviation of a record's token-level scores over the prompts")
    axis.set_ylabel("records", fontsize=8)
    axis.legend(frameon=False, fontsize=8)
    return _png(figure)


def model_disagreement(sample: Sample, selected: int) -> bytes | None:
    """Draw each further model's sentence-level score against the first one's."""
    names = list(sample.sentence)
    if len(names) < 2:
        return None
    figure, axes = _figure(len(names) - 1, 3.6 * (len(names) - 1))
    first = sample.sentence[names[0]]
    for axis, name in zip(axes, names[1:], strict=True):
        _two_groups(axis, first, sample.sentence[name], sample.rank <= selected)
        axis.set_xlabel(f"sentence-level score of {names[0]}")
        axis.set_ylabel(f"of {name}")
        both = np.isfinite(first) & np.isfinite(sample.sentence[name])
        rho = _rank_correlation(first[both], sample.sentence[name][both])
        axis.set_title(f"rank correlation {rho:.2f}", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    return _png(figure)


def length_against_score(sample: Sample, selected: int) -> bytes:
    """Draw the fused score against the length of the response."""
    from matplotlib.ticker import LogFormatter

    figure, (axis,) = _figure(1, 3.4)
    length = np.maximum(sample.length, 1)
    _two_groups(axis, length, sample.score, sample.rank <= selected)
    axis.set_xscale("log")
    for formatted in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        formatted(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
    axis.set_xlabel("characters of the response (logarithmic)")
    axis.set_ylabel("fused score")
    rho = _rank_correlation(length, sample.score)
    axis.set_title(f"rank correlation {rho:.2f}", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    return _png(figure)


def _rank_correlation(first: Floats, second: Floats) -> float:
    """Return Spearman's rank correlation; NaN where one side does not vary."""
    from scipy.stats import rankdata

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _outlines(axis: Any, table: dict[str, Floats]) -> None:  # noqa: ANN401 - Axes
    """Draw one outlined histogram per model, all with the same bins."""
    finite = {model: values[np.isfinite(values)] for model, values in table.items()}
    together = np.concatenate(list(finite.values()))
    if not len(together):
        return
    edges = np.histogram_bin_edges(together, _bins(together))
    for number, (model, values) in enumerate(finite.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axis.hist(values, edges, color=colour, label=model, histtype="step", linewidth=1.5)


def _bins(values: Floats) -> int:
    return int(np.clip(2 * np.sqrt(len(values)), 8, 50))


def _two_groups(axis: Any, x: Floats, y: Floats, chosen: Any) -> None:  # noqa: ANN401 - Axes
    size = float(np.clip(16_000 / max(len(x), 1), 3, 20))
    options = {"s": size, "alpha": 0.5, "linewidths": 0}
    axis.scatter(x[~chosen], y[~chosen], color=_GREY, label="not selected", **options)
    axis.scatter(x[chosen], y[chosen], color=_COLOURS[0], label="selected", **options)


def _figure(rows: int, height: float) -> tuple[Figure, Sequence[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(rows, 1)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.2)
    return figure, axes


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
