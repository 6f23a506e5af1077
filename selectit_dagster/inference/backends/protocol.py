"""What scoring asks of whatever runs the model: rows of token ids in, numbers or failures out.

The protocol is narrow on purpose. It knows token ids and nothing of records, prompts or
files, so a server or a cluster can stand behind it as well as this process. A backend may
batch as it likes: the rows of a :class:`TokenBatch` are only a proposal of what goes well
together, and ``facts.workers`` batches may be asked for at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from selectit_dagster.inference.model_loading import LoadedModel

Tokens = npt.NDArray[np.int32]
LogProbabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenBatch:
    """Token rows of like length that begin with the same tokens.

    Row ``i`` is ``prefix`` followed by ``suffixes[i]``. The prefix may be empty, a suffix not.
    """

    prefix: Tokens
    suffixes: tuple[Tokens, ...]

    def __len__(self) -> int:
        return len(self.suffixes)

    def row(self, index: int) -> Tokens:
        """Return one whole row of token ids."""
        return np.concatenate([self.prefix, self.suffixes[index]])

    def rows(self) -> list[list[int]]:
        """Return all rows as plain lists."""
        return [self.row(index).tolist() for index in range(len(self))]

    @property
    def positions(self) -> int:
        """Token positions that run when the prefix is cached, padding included."""
        return len(self.suffixes) * max(map(len, self.suffixes))

    @property
    def tokens(self) -> int:
        """Tokens of all whole rows, padding left out: what a plain loop would run."""
        return len(self.prefix) * len(self.suffixes) + sum(map(len, self.suffixes))

    def take(self, indices: Sequence[int]) -> TokenBatch:
        """Return the batch of some of the rows."""
        return TokenBatch(self.prefix, tuple(self.suffixes[index] for index in indices))


@dataclass(frozen=True)
class BatchScores:
    """What came out of a batch.

    Attributes
    ----------
    log_probabilities:
        (rows, R) float32: the log-probability of each rating token after each row, natural
        logarithms over the whole vocabulary. Their softmax is the rating distribution, the sum
        of their exponentials the rating mass. NaN in the rows that failed.
    failures:
        Why a row has no numbers, by its place in the batch.
    """

    log_probabilities: LogProbabilities
    failures: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BackendFacts:
    """What is recorded about the model that scored.

    ``workers`` is how many batches may be asked for at once, from as many threads;
    ``batch_tokens`` the token positions per batch that suit the device unmeasured;
    ``linear_layers`` whether their weights are packed, or why not.
    """

    parameters: int
    dtype: str
    device: str
    revision: str | None = None
    workers: int = 1
    batch_tokens: int = 512
    weights_bytes: int = 0
    linear_layers: str = ""


@dataclass
class BackendNotes:
    """What a backend found out while it ran: the execution mode, retries, what to warn about.

    ``halvings`` counts batches that did not fit into memory and were halved; ``details`` goes
    into the manifest.
    """

    mode: str = ""
    warnings: list[str] = field(default_factory=list)
    halvings: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Whatever runs a model for the scoring run."""

    @property
    def facts(self) -> BackendFacts:
        """What is recorded about the model."""
        ...  # pragma: no cover - protocol

    @property
    def notes(self) -> BackendNotes:
        """What it found out so far."""
        ...  # pragma: no cover - protocol

    def rate(self, batch: TokenBatch) -> BatchScores:
        """Return the log-probabilities of the rating tokens after each row, or why not.

        Called from ``facts.workers`` threads at once. A row that cannot be scored, whatever
        the reason, is a failure in the answer.

        Raises
        ------
        DeviceBrokenError
            When nothing more can be asked of it: what came before is kept, and the stage
            ends as one that may be tried again.
        """
        ...  # pragma: no cover - protocol

    def peak_memory_bytes(self) -> int:
        """Return the most memory that the model and its batches took so far."""
        ...  # pragma: no cover - protocol


@runtime_checkable
class Closing(Protocol):
    """A backend that holds other processes, and lets go of them when the run ends."""

    def close(self) -> None:
        """Let go."""
        ...  # pragma: no cover - protocol


def local_backend(loaded: LoadedModel, rating_ids: Sequence[int]) -> Backend:
    """Return the backend that runs a loaded model in this process."""
    from selectit_dagster.inference.backends.transformers import TransformersBackend

    return TransformersBackend(loaded, rating_ids)
