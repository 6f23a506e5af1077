"""The loss curve of one training run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selectit_dagster.artefacts.figures import png_bytes

_BLUE, _ORANGE = "#0072B2", "#D55E00"


def loss_curve(steps: Sequence[dict[str, float]]) -> bytes:
    """Return a PNG: loss per step with its running mean, and the learning rate below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    at = [step["step"] for step in steps]
    loss = np.array([step["loss"] for step in steps])
    figure = Figure(figsize=(7.2, 4.4), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot(at, loss, color=_BLUE, alpha=0.35, linewidth=1, label="each step")
    width = max(1, len(loss) // 20)
    if width > 1:
        top.plot(at, _running_mean(loss, width), color=_BLUE, label=f"mean of {width} steps")
        top.legend(frameon=False)
    top.set_ylabel("loss per trained token")
    top.set_title(f"loss {loss[0]:.3f} at the first step, {loss[-width:].mean():.3f} at the end")
    bottom.plot(at, [step["learning_rate"] for step in steps], color=_ORANGE)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return png_bytes(figure)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean over the last ``width`` values, of fewer at the start."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((total[ends] - total[starts]) / (ends - starts))
