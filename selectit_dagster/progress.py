"""Progress of long steps, for people (stderr), for logs and for metrics.

An engine calls ``progress.update(done, total, **figures)`` as often as it likes; the
reporter decides how often that is shown. Engines never print.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Protocol

LOGGER = logging.getLogger("selectit_dagster")


class Progress(Protocol):
    """What an engine reports to."""

    def update(self, done: int, total: int, **figures: float) -> None:
        """Report ``done`` of ``total`` units, with named figures (rates, memory, loss)."""
        ...  # pragma: no cover - protocol


class Silent:
    """A reporter that shows nothing."""

    def update(self, done: int, total: int, **figures: float) -> None:
        """Accept and forget."""


class Reporter:
    """Show at most one line per ``interval`` seconds, and the last one.

    Parameters
    ----------
    what:
        The step's name, at the start of each line.
    unit:
        What is counted, in the plural ("prompts").
    emit:
        Where a line goes: stderr by default; Dagster's log in an asset.
    metrics:
        Called with (figures, step) for stepped metrics; None for none.
    quiet_for:
        Seconds before the first line: short steps stay silent.
    check_interrupts:
        Called at every report, shown or not; it may raise what ends the step.
    stretch:
        Share of the time so far that lies between two lines at least. Lines that are stored
        for good then grow with the logarithm of a step's length, not with the length.
    """

    def __init__(
        self,
        what: str,
        unit: str = "records",
        *,
        emit: Callable[[str], None] | None = None,
        metrics: Callable[[dict[str, float], int], None] | None = None,
        check_interrupts: Callable[[], None] = lambda: None,
        interval: float = 5.0,
        quiet_for: float = 2.0,
        stretch: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.unit = unit
        self.emit = emit or say
        self.metrics = metrics
        self.check_interrupts = check_interrupts
        self.interval = interval
        self.stretch = stretch
        self.clock = clock
        self.started = clock()
        self.first_done: int | None = None
        self.next_at = self.started + quiet_for
        self.shown = False

    def update(self, done: int, total: int, **figures: float) -> None:
        """Show the line when its time has come, or when the step is complete."""
        self.check_interrupts()
        now = self.clock()
        if self.first_done is None:
            # what a resumed step finds done already does not count for its rate
            self.first_done = done if done < total else 0
        last = done >= total and self.shown
        if now < self.next_at and not last:
            return
        self.next_at = now + max(self.interval, self.stretch * (now - self.started))
        self.shown = True
        self.emit(self.line(done, total, now, figures))
        if self.metrics is not None:
            self.metrics({"done": float(done), **figures}, done)

    def line(self, done: int, total: int, now: float, figures: dict[str, float]) -> str:
        """Return the text: share, rate, time left and the figures."""
        elapsed = max(now - self.started, 1e-9)
        rate = (done - (self.first_done or 0)) / elapsed
        left = (total - done) / rate if rate > 0 else float("inf")
        text = f"{self.what}: {done:,}/{total:,} {self.unit}, {rate:,.1f}/s"
        if done < total and left != float("inf"):
            text += f", {duration(left)} left"
        return text + "".join(f", {name} {value:,.4g}" for name, value in figures.items())


def say(line: str) -> None:
    """Write a line for the person at the terminal."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Return a time span as a person says it: ``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
