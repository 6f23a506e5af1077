"""What scoring asks of whatever runs the model: a batch of token rows in, ratings out.

The protocol is narrow on purpose. It knows token ids and nothing of records, prompts or
files, so that a cluster engine can stand behind it as well as the local one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from selectit_dagster.inference.model_loading import LoadedModel

Tokens = npt.NDArray[np.int32]
LogProbabilities = npt.NDArray[np.float32]


class BatchTooLargeError(Exception):
    """The device ran out of memory on a batch; smaller ones may fit."""


@dataclass(frozen=True)
class TokenBatch:
    """Token rows that are run together, each a shared beginning and an end of its own.

    Row ``i`` is ``prefixes[prefix_of[i]]`` followed by ``suffixes[i]``. In the paper's
    layout all rows of a batch share one prefix, the rating prompt; in ``record-first``
    the prefixes are the records, of one length in a batch. A prefix may be empty when it is
    the only one; a suffix may not.
    """

    prefixes: tuple[Tokens, ...]
    suffixes: tuple[Tokens, ...]
    prefix_of: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.suffixes)

    def row(self, index: int) -> Tokens:
        """Return one whole row of token ids."""
        return np.concatenate([self.prefixes[self.prefix_of[index]], self.suffixes[index]])

    @property
    def positions(self) -> int:
        """Token positions that run, padding included (a single prefix is cached: left out)."""
        own = len(self.suffixes) * max(map(len, self.suffixes))
        if len(self.prefixes) == 1:
            return own
        return own + len(self.prefixes) * max(map(len, self.prefixes))

    @property
    def tokens(self) -> int:
        """Tokens of all whole rows, padding left out: what a plain loop would run."""
        prefixes = sum(len(self.prefixes[which]) for which in self.prefix_of)
        return prefixes + sum(map(len, self.suffixes))

    def take(self, indices: Sequence[int]) -> TokenBatch:
        """Return the batch of some of the rows, with the prefixes that they need."""
        needed = sorted({self.prefix_of[index] for index in indices})
        renamed = {old: new for new, old in enumerate(needed)}
        return TokenBatch(
            prefixes=tuple(self.prefixes[old] for old in needed),
            suffixes=tuple(self.suffixes[index] for index in indices),
            prefix_of=tuple(renamed[self.prefix_of[index]] for index in indices),
        )


@dataclass(frozen=True)
class BackendFacts:
    """What is recorded about the model that rated.

    ``workers`` is how many batches may be rated at once, from as many threads;
    ``batch_tokens`` the token positions per batch that suit the device unmeasured.
    """

    parameters: int
    dtype: str
    device: str
    revision: str | None = None
    workers: int = 1
    batch_tokens: int = 512
    weights_bytes: int = 0


@dataclass
class BackendNotes:
    """What a backend found out while it ran: how rows were run, and what to warn about."""

    way: str = ""
    warnings: list[str] = field(default_factory=list)


class Backend(Protocol):
    """Whatever runs a model for the scoring engine."""

    @property
    def facts(self) -> BackendFacts:
        """What is recorded about the model."""
        ...  # pragma: no cover - protocol

    @property
    def notes(self) -> BackendNotes:
        """What it found out so far."""
        ...  # pragma: no cover - protocol

    def rate(self, batch: TokenBatch) -> LogProbabilities:
        """Return the log-probability of each rating token after each row.

        (rows, R) float32, natural logarithms over the whole vocabulary: their softmax is
        the rating distribution, the sum of their exponentials the rating mass.

        Raises
        ------
        BatchTooLargeError
            When the batch does not fit into the device's memory.
        """
        ...  # pragma: no cover - protocol

    def peak_memory_bytes(self) -> int:
        """Return the most memory that the model and its batches took so far."""
        ...  # pragma: no cover - protocol


@runtime_checkable
class Closing(Protocol):
    """A backend that holds something for the calibration and lets go of it afterwards."""

    def close(self) -> None:
        """Let go."""
        ...  # pragma: no cover - protocol


def local_backend(loaded: LoadedModel, rating_ids: Sequence[int]) -> Backend:
    """Return the backend that runs a loaded model in this process."""
    from selectit_dagster.inference.backends.transformers import TransformersBackend

    return TransformersBackend(loaded, rating_ids)
