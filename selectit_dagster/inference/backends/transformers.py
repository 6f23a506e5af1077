"""The local backend: a transformers model in this process, and the ids of the rating tokens."""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from selectit_dagster.inference.backends.protocol import (
    BackendFacts,
    BackendNotes,
    BatchScores,
    LogProbabilities,
    TokenBatch,
)
from selectit_dagster.inference.batching import usual_batch_tokens
from selectit_dagster.inference.execution_modes import LADDER
from selectit_dagster.inference.runner import ModelRunner

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.model_loading import LoadedModel

_MAX_WORKERS = 8


class TransformersBackend:
    """Scores token rows with a loaded causal language model.

    On a CPU small batches on one thread each beat one batch on all threads, since their
    activations stay in the cache.

    Parameters
    ----------
    loaded:
        The model, in evaluation mode. It belongs to the backend from here on.
    rating_ids:
        The ids of the R rating tokens.
    workers:
        Batches at once; default: on a CPU one per thread (at most 8), else one.

    Raises
    ------
    UserError
        When the model is no causal language model, or cannot be run.
    """

    def __init__(
        self, loaded: LoadedModel, rating_ids: Sequence[int], *, workers: int | None = None
    ) -> None:
        import torch

        self.runner = ModelRunner(loaded)
        self.device = loaded.device
        self.rating_ids = torch.tensor(list(rating_ids))
        self.threads = torch.get_num_threads()
        self._running = 0
        self._running_lock = threading.Lock()
        self.workers = workers or (min(self.threads, _MAX_WORKERS) if self.device == "cpu" else 1)
        if self.runner.regimes.vary:  # the library keeps a regime's frequencies in the model
            self.workers = 1
        self._facts = BackendFacts(
            parameters=loaded.parameters,
            dtype=loaded.dtype,
            device=self.device,
            revision=loaded.revision,
            workers=self.workers,
            batch_tokens=usual_batch_tokens(loaded.model.config, self.device, loaded.dtype),
            weights_bytes=sum(w.numel() * w.element_size() for w in loaded.model.parameters()),
            linear_layers=self.runner.linear_layers,
        )
        self._notes = BackendNotes(warnings=self.runner.modes.warnings)

    @property
    def facts(self) -> BackendFacts:
        """What is recorded about the model."""
        return self._facts

    @property
    def notes(self) -> BackendNotes:
        """How rows are run, and warnings."""
        used = self.runner.modes.used
        self._notes.mode = ", ".join(mode for mode in LADDER if mode in used)
        self._notes.halvings = self.runner.retries.halvings
        return self._notes

    def peak_memory_bytes(self) -> int:
        """Return the peak of the process (CPU) or of the device's allocator."""
        if self.device.startswith("cuda"):
            import torch

            return int(torch.cuda.max_memory_allocated(self.device))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def rate(self, batch: TokenBatch) -> BatchScores:
        """Return log-probabilities or failures; see the protocol."""
        retries = self.runner.retries
        with self._one_thread_each():
            scores = retries.score(batch, self._rate, len(self.rating_ids))
            unfit = np.flatnonzero(~np.isfinite(scores.log_probabilities).all(axis=1))
            if set(unfit.tolist()) - set(scores.failures):
                retries.require_device("a row gave no number")
        return scores

    def _rate(self, batch: TokenBatch) -> LogProbabilities:
        """Return (rows, R) float32 log-probabilities."""
        rows = [batch.row(index).tolist() for index in range(len(batch))]
        last = [[len(row) - 1] for row in rows]
        return np.stack(self.runner.logits(rows, last, len(batch.prefix), self._rated))

    def _rated(self, _: list[int], logits: torch.Tensor) -> list[LogProbabilities]:
        """Return log-probabilities of the rating tokens from (rows, 1, vocabulary) logits."""
        at_end = logits[:, 0]
        chosen = at_end[:, self.rating_ids.to(at_end.device)]
        return list((chosen - at_end.logsumexp(dim=-1, keepdim=True)).cpu().numpy())

    @contextlib.contextmanager
    def _one_thread_each(self) -> Iterator[None]:
        """Share the CPU's threads out among the workers while the block runs."""
        import torch

        if self.device != "cpu":
            yield
            return
        with self._running_lock:
            self._running += 1
            torch.set_num_threads(max(1, self.threads // self.workers))
        try:
            yield
        finally:
            with self._running_lock:
                self._running -= 1
                # MKL's number is the process's: who still runs must not get it back too early
                if not self._running:
                    torch.set_num_threads(self.threads)
