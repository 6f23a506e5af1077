"""Pictures of stored scores: how a model rates, and where prompts or models disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selectit_dagster.artefacts.figures import png_bytes
from selectit_dagster.rating import levels
from selectit_dagster.rating.score_store import OK, iter_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by every kind of colour vision
_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#666666"
_AT_MOST = 50_000
_DPI = 90


def token_scores(folder: Path, num_prompts: int) -> levels.Array:
    """Return token-level scores (n, K) of rated records, a regular sample of large folders."""
    kept: list[levels.Array] = []
    for part in iter_scores(folder, num_prompts):
        kept.append(levels.token_level(part.probabilities[part.record_status == OK]))
    together = np.concatenate(kept) if kept else np.empty((0, num_prompts))
    return together[:: max(1, len(together) // _AT_MOST)]


def score_overview(folder: Path, num_prompts: int, alpha: float = 0.2) -> bytes:
    """Draw the token and sentence level's distributions and each prompt's, as PNG bytes."""
    scores = token_scores(folder, num_prompts)
    figure, (left, right) = _figure(2)
    if not len(scores):
        left.text(0.5, 0.5, "no record was rated", ha="center")
        return png_bytes(figure)
    bins = np.linspace(0, max(float(scores.max()), 1e-6), 40).tolist()
    left.hist(
        scores.ravel(), bins=bins, density=True, color=_ORANGE, alpha=0.6, label="token level"
    )
    sentence = levels.sentence_level(scores, alpha)
    left.hist(
        sentence,
        bins=bins,
        density=True,
        histtype="step",
        color=_BLUE,
        lw=2,
        label=f"sentence level, α = {alpha:g}",
    )
    left.set(xlabel="score", ylabel="density", title=f"Scores of {len(scores):,} records")
    left.legend(frameon=False)
    right.boxplot(
        [scores[:, k] for k in range(num_prompts)],
        showfliers=False,
        medianprops={"color": _BLUE, "lw": 2},
    )
    right.set(xlabel="rating prompt", ylabel="token level", title="Each rating prompt")
    return png_bytes(figure)


def prompt_disagreement(folder: Path, num_prompts: int) -> bytes:
    """Draw how far prompts agree: rank correlations, and the spread within a record (PNG)."""
    scores = token_scores(folder, num_prompts)
    figure, (left, right) = _figure(2)
    _correlations(left, scores, [str(k + 1) for k in range(num_prompts)])
    left.set(xlabel="rating prompt", ylabel="rating prompt", title="Rank correlation")
    if len(scores):
        right.hist(scores.std(axis=1), bins=40, color=_BLUE)
    right.set(
        xlabel="standard deviation over prompts", ylabel="records", title="Disagreement in a record"
    )
    return png_bytes(figure)


def model_disagreement(
    scores: Sequence[tuple[str, Path]], num_prompts: int, alpha: float = 0.2
) -> bytes:
    """Draw the rank correlations between models' sentence-level scores, as PNG bytes.

    ``scores``: (model name, score folder) of models that rated the same dataset.
    """
    columns = []
    for _, folder in scores:
        parts = [
            np.where(
                part.record_status == OK,
                levels.record_score(part.probabilities, alpha=alpha),
                np.nan,
            )
            for part in iter_scores(folder, num_prompts)
        ]
        columns.append(np.concatenate(parts))
    table = np.stack(columns, axis=1)
    table = table[~np.isnan(table).any(axis=1)]
    figure, (axes,) = _figure(1)
    _correlations(axes, table, [name for name, _ in scores])
    axes.set_title(f"Rank correlation between models, {len(table):,} records")
    return png_bytes(figure)


def _correlations(axes: Axes, table: levels.Array, names: list[str]) -> None:
    """Draw Spearman's correlation between the columns of ``table`` as a labelled matrix."""
    from scipy.stats import rankdata

    size = len(names)
    matrix = np.eye(size)
    if len(table) > 1:
        ranks = rankdata(table, axis=0)
        ranks = ranks - ranks.mean(axis=0)
        norms = np.sqrt((ranks**2).sum(axis=0))
        # a column that never varies correlates with nothing
        scaled = ranks / np.where(norms > 0, norms, np.inf)
        matrix = scaled.T @ scaled
    axes.imshow(matrix, vmin=-1, vmax=1, cmap="cividis")
    for row in range(size):
        for column in range(size):
            shade = "black" if matrix[row, column] > 0.2 else "white"
            axes.text(
                column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", color=shade
            )
    axes.set_xticks(range(size), names)
    axes.set_yticks(range(size), names)


def _figure(panels: int) -> tuple[Figure, tuple[Axes, ...]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels, 3.6), dpi=_DPI, layout="constrained")
    axes = tuple(figure.add_subplot(1, panels, number + 1) for number in range(panels))
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(colors=_GREY)
    return figure, axes
