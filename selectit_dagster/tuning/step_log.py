"""The training log, one line of JSON per optimiser step, and the curve that is drawn of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selectit_dagster.artefacts.figures import png_bytes
from selectit_dagster.artefacts.files import write_text
from selectit_dagster.progress import Progress

LOG = "log.jsonl"
_BLUE, _ORANGE = "#0072B2", "#D55E00"
# what a reporter is told; the rest is for the log alone
_SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes")


class StepLog:
    """``log.jsonl``: one line per optimiser step, also after a resume.

    Parameters
    ----------
    path:
        The file.
    progress:
        Told of every step, with its figures.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path = path
        self.progress = progress
        self.steps: list[dict[str, float]] = []
        self.handle: Any = None

    def start(self, step: int, *, write: bool) -> None:
        """Keep the lines up to ``step`` of an earlier try, drop the rest, and open for more."""
        self.steps = [line for line in read_log(self.path) if line["step"] <= step]
        if write:
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.steps))
            self.handle = self.path.open("a", encoding="utf-8")

    def append(self, figures: dict[str, float], total: int) -> None:
        """Add one step of ``total``."""
        self.steps.append(figures)
        if self.handle is not None:
            self.handle.write(json.dumps(figures) + "\n")
            self.handle.flush()
            self.progress.update(
                int(figures["step"]), total, **{name: figures[name] for name in _SHOWN}
            )

    def close(self) -> None:
        """Close the file."""
        if self.handle is not None:
            self.handle.close()
            self.handle = None


def read_log(path: Path) -> list[dict[str, float]]:
    """Read the whole lines of a ``log.jsonl``, up to the first that is not one of ours."""
    lines: list[dict[str, float]] = []
    if not path.exists():
        return lines
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            break
        lines.append(line)
    return lines


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
