"""The budget of an experiment: scoring stops cleanly when its hours or money are used up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.errors import UserError
from selectit_dagster.progress import Progress

if TYPE_CHECKING:
    from selectit_dagster.experiment import Experiment

SPENT_FILE = "spent.json"


class Budgeted:
    """Progress that stops the work when what was spent reaches the limit.

    Parameters
    ----------
    progress:
        Where progress goes.
    before:
        Seconds that earlier scoring took.
    limit:
        Seconds in all.
    """

    def __init__(self, progress: Progress, model: str, before: float, limit: float) -> None:
        self.progress, self.model, self.before, self.limit = progress, model, before, limit
        self.started = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds in all until now."""
        return self.before + time.monotonic() - self.started

    def update(self, done: int, total: int, **figures: float) -> None:
        """Pass progress on; raise UserError when the budget is used up before the end."""
        self.progress.update(done, total, **figures)
        if self.spent >= self.limit and done < total:
            raise UserError(
                f"the budget is used up after {self.spent / 3600:.3g} hours of scoring: model "
                f"{self.model} has {done:,} of {total:,} ratings, and they are kept",
                hint="raise budget in the experiment and run again: it goes on from there",
            )


def within_budget(
    experiment: Experiment,
    folder: Path,
    model: str,
    progress: Progress,
    work: Callable[[Progress], Manifest],
) -> Manifest:
    """Do the work of scoring with one model under the experiment's budget.

    ``folder`` is the experiment's; what was spent is kept there, over all models and runs.
    """
    limit = experiment.budget_seconds
    if limit is None:
        return work(progress)
    path = folder / SPENT_FILE
    before = float(read_json(path)["scoring_seconds"]) if path.exists() else 0.0
    watch = Budgeted(progress, model, before, limit)
    try:
        return work(watch)
    finally:
        write_json(path, {"scoring_seconds": watch.spent})
