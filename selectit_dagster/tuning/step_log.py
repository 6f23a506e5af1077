"""The training log: one line of JSON per optimiser step, whole also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import write_text
from selectit_dagster.progress import Progress

LOG = "log.jsonl"
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
