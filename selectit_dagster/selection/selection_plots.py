"""Plots of a selection, as PNG bytes: scores, lengths, and sensitivity."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.figures import png_bytes
from selectit_dagster.selection.dataset_writer import DATASET_FILE
from selectit_dagster.selection.ranking import RANKING_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, apart for colour-blind readers
_SELECTED, _REJECTED = "#D55E00", "#0072B2"
_POINTS = 3_000
Floats = npt.NDArray[np.float64]


def score_histogram(ranking: Path, selected: Path) -> bytes:
    """Return how the SelectIT scores of selected and of other ranked records lie.

    Parameters
    ----------
    ranking, selected:
        Folders of the ranking and of any arm's selected dataset.
    """
    with tempfile.TemporaryDirectory() as scratch, Workspace(Path(scratch)) as work:
        scores = work.table(ranking / RANKING_FILE)
        chosen = work.table(selected / DATASET_FILE)
        low, high = work.row(f"SELECT min(score), max(score) FROM {scores}")
        edges = np.linspace(float(str(low or 0)), float(str(high or 0)) or 1.0, 41)
        inside = f"SELECT score FROM {scores} SEMI JOIN {chosen} USING (record_id)"
        outside = f"SELECT score FROM {scores} ANTI JOIN {chosen} USING (record_id)"
        counts = [_counts(work, query, edges) for query in (outside, inside)]
    figure, axes = _figure(6.4, 3.4)
    for count, colour, name in zip(
        counts, (_REJECTED, _SELECTED), ("not selected", "selected"), strict=True
    ):
        label = f"{name}: {int(count.sum()):,}"
        axes.stairs(count, edges, fill=True, alpha=0.55, color=colour, label=label)
    axes.set_xlabel("SelectIT score (model level)")
    axes.set_ylabel("records")
    axes.legend(frameon=False)
    return png_bytes(figure)


def _counts(work: Workspace, query: str, edges: Floats) -> Floats:
    total = np.zeros(len(edges) - 1)
    for batch in work.batches(f"SELECT score FROM ({query}) WHERE score IS NOT NULL"):
        total += np.histogram(batch.column("score").to_numpy(), edges)[0]
    return total


def length_against_score(records: Path, ranking: Path, selected: Path) -> bytes:
    """Return response length against SelectIT score for a fixed sample of ranked records.

    The title gives Spearman's rank correlation of the shown sample.
    """
    query_columns = "record_id, score, length(response) AS length, c.rank IS NOT NULL AS chosen"
    with tempfile.TemporaryDirectory() as scratch, Workspace(Path(scratch)) as work:
        query = (
            f"SELECT {query_columns} FROM (SELECT record_id, score FROM "
            f"{work.table(ranking / RANKING_FILE)} WHERE rank IS NOT NULL "
            f"ORDER BY sha256(record_id) LIMIT {_POINTS}) "
            f"JOIN (SELECT record_id, response FROM {work.table(records / 'records.parquet')}) "
            "USING (record_id) LEFT JOIN (SELECT record_id, rank FROM "
            f"{work.table(selected / DATASET_FILE)}) c USING (record_id) ORDER BY record_id"
        )
        batches = list(work.batches(query))
    score, length, chosen = (
        np.concatenate([b.column(name).to_numpy(zero_copy_only=False) for b in batches])
        if batches
        else np.empty(0)
        for name in ("score", "length", "chosen")
    )
    figure, axes = _figure(6.4, 3.8)
    for mask, colour, marker, name in (
        (chosen == 0, _REJECTED, ".", "not selected"),
        (chosen == 1, _SELECTED, "x", "selected"),
    ):
        axes.scatter(
            np.maximum(length[mask], 1),
            score[mask],
            s=9,
            c=colour,
            marker=marker,
            label=name,
            alpha=0.6,
            linewidths=0.8,
        )
    axes.set_xscale("log")
    axes.set_xlabel("length of the response (characters)")
    axes.set_ylabel("SelectIT score")
    axes.set_title(_correlation(score, length), fontsize=9)
    axes.legend(frameon=False)
    return png_bytes(figure)


def _correlation(score: Floats, length: Floats) -> str:
    if score.size < 3 or np.ptp(score) == 0 or np.ptp(length) == 0:
        return f"{score.size:,} records"
    from scipy.stats import spearmanr

    found = float(spearmanr(score, length).statistic)
    return f"{score.size:,} records, Spearman's rank correlation {found:+.2f}"


def sensitivity_heat_map(details: dict[str, Any]) -> bytes:
    """Return the pairwise overlaps of the sets that each setting would select.

    ``details``: ``labels`` (n) and ``pairwise`` (n, n), as the sensitivity stores them.
    """
    labels, values = details["labels"], np.array(details["pairwise"])
    side = 1.8 + 0.29 * len(labels)
    figure, axes = _figure(side + 0.8, side)
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    for row in range(len(labels)):
        for column in range(len(labels)):
            value = values[row, column]
            colour = "black" if value > 0.55 else "white"
            text = f"{100 * value:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(
        f"selected records in common, % (chance {details['chance_overlap']:.0%})", fontsize=9
    )
    axes.grid(visible=False)
    return png_bytes(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes
