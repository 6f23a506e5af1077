"""Retry on out-of-memory, row failures, and telling a bad row from a broken device.

One rule for every device and every use of a model: what does not fit into memory is halved,
down to one row, which is then named. A row that fails by itself costs that row, unless a row
that was fine before fails as well: then the device is broken, and nothing more is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from selectit_dagster.errors import TransientError, first_line
from selectit_dagster.inference.backends.protocol import BatchScores, LogProbabilities, TokenBatch
from selectit_dagster.inference.devices import is_out_of_memory

Result = TypeVar("Result")

# how the reasons of row failures begin that lie in the device and not in the row
_MEMORY, MODEL_FAILED = "out of memory", "the model failed"
_ROW_ERRORS = (RuntimeError, ValueError, IndexError, MemoryError)


class DeviceBrokenError(TransientError):
    """The device no longer runs what it ran before."""


def is_device_failure(reason: str | None) -> bool:
    """Tell whether a row failed by its device: such a row is asked again by a later run."""
    return reason is not None and reason.startswith((_MEMORY, MODEL_FAILED))


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """Results and reasons of failure, by the row's number: every row is in one of them."""

    results: dict[int, Result]
    failures: dict[int, str]


@dataclass
class RowRetries:
    """Runs rows on a device, halving what does not fit; several threads may.

    Parameters
    ----------
    prove:
        Runs a row that was fine before, and raises when it no longer is.
    free:
        Gives memory back to the device that is held without need.

    Attributes
    ----------
    ceiling:
        The most token positions that are still tried, once a batch has not fitted.
    halvings:
        How often one did not.
    """

    prove: Callable[[], object]
    free: Callable[[], object] = lambda: None
    ceiling: float = float("inf")
    halvings: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self,
        lengths: Sequence[int],
        work: Callable[[list[int]], Sequence[Result]],
        shared: int = 0,
    ) -> Outcome[Result]:
        """Run all rows, together where they fit.

        Parameters
        ----------
        lengths:
            Tokens of each row.
        work:
            Runs the rows of these numbers and returns a result for each.
        shared:
            How many first tokens are cached and take no position of a batch.

        Raises
        ------
        DeviceBrokenError
            When a row failed and one that was fine before does too.
        """
        outcome: Outcome[Result] = Outcome({}, {})
        tried_alone: set[int] = set()
        waiting = [list(range(len(lengths)))]
        while waiting:
            rows = waiting.pop()
            positions = len(rows) * max(1, max(lengths[row] for row in rows) - shared)
            if len(rows) > 1 and positions > self.ceiling:
                waiting += _halves(rows)
                continue
            try:
                outcome.results.update(zip(rows, work(rows), strict=True))
            except _ROW_ERRORS as error:
                full = is_out_of_memory(error)
                reason = f"{MODEL_FAILED}: {first_line(error)[:200]}"
                if full:
                    self._lower(positions, alone=len(rows) == 1)
                    reason = f"{_MEMORY} with {lengths[rows[0]]} tokens"
                del error  # its traceback holds the batch's tensors
            else:
                continue
            self.free()
            if len(rows) > 1:
                waiting += _halves(rows)
                continue
            self.require_device(reason)
            if rows[0] not in tried_alone:  # what other threads held may be free now
                tried_alone.add(rows[0])
                waiting.append(rows)
                continue
            outcome.failures[rows[0]] = reason
        return outcome

    def require_device(self, reason: str) -> None:
        """Run the row that was fine before.

        Raises
        ------
        DeviceBrokenError
            When it fails.
        """
        try:
            self.prove()
        except _ROW_ERRORS as error:
            raise DeviceBrokenError(
                f"the device broke: {reason}; and a row that it ran before fails as well "
                f"({first_line(error)[:200]}). What came before is kept"
            ) from error

    def score(
        self, batch: TokenBatch, rate: Callable[[TokenBatch], LogProbabilities], num_ratings: int
    ) -> BatchScores:
        """Score a batch with ``rate``; every row ends as numbers or as a reason why not."""
        lengths = [len(batch.prefix) + len(suffix) for suffix in batch.suffixes]
        found = self.run(lengths, lambda rows: list(rate(batch.take(rows))), len(batch.prefix))
        log_p = np.full((len(batch), num_ratings), np.nan, dtype=np.float32)
        for row, values in found.results.items():
            log_p[row] = values
        return BatchScores(log_p, found.failures)

    def _lower(self, positions: int, *, alone: bool) -> None:
        with self._lock:
            self.halvings += 1
            self.ceiling = min(self.ceiling, max(1, positions - 1 if alone else positions // 2))


def _halves(rows: list[int]) -> list[list[int]]:
    """Return the rows in two halves, the first one last, where it is taken from next."""
    middle = len(rows) // 2
    return [rows[middle:], rows[:middle]]
