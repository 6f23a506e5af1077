"""The local backend: a transformers model, run so that only the needed work is done.

* A shared prefix runs once; its keys and values are lent to every batch. Rows are padded on
  the right, where a causal model needs no mask for it.
* Only each row's last hidden state meets the output layer, in float32.
* On a CPU small batches on one thread each beat one batch on all threads, since their
  activations stay in the cache.

The first batch is compared with the plain way, one row at a time through the untouched
model. An architecture for which a shortcut does not hold falls back to a slower way, and
says so in ``notes``.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.inference.backends.protocol import (
    BackendFacts,
    BackendNotes,
    BatchScores,
    LogProbabilities,
    TokenBatch,
    Tokens,
)
from selectit_dagster.inference.failures import RowRetries
from selectit_dagster.inference.output_layer import LastLogits
from selectit_dagster.inference.prefix_cache import KeptPrefixes, States, lent_cache, states_of
from selectit_dagster.rating.levels import rating_distribution

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.model_loading import LoadedModel

_WAYS = ("prefix", "padded", "single")
# on a CPU a batch's activations should stay in the cache: 512 positions of a width of 768;
# a narrower model takes more, so that its many small steps cost less to start
_CPU_BATCH_TOKENS = (512, 2048)
_CPU_BATCH_VALUES = 512 * 768
_GPU_BATCH_TOKENS = 16_384
_MAX_WORKERS = 8
# how far P' may be from the plain way: float32 must agree, half precision depends on the
# batch's shape (up to 0.05 was measured on random weights)
_TOLERANCE = {"float32": 1e-4}
_HALF_TOLERANCE = 0.15


class TransformersBackend:
    """Rates token rows with a loaded causal language model.

    Parameters
    ----------
    loaded:
        The model, in evaluation mode. It belongs to the backend from here on.
    rating_ids:
        The ids of the R rating tokens.
    workers:
        Batches at once; default: on a CPU one per thread (at most 8), else one.
    """

    def __init__(
        self, loaded: LoadedModel, rating_ids: Sequence[int], *, workers: int | None = None
    ) -> None:
        import torch

        self.model: Any = loaded.model
        self.device = loaded.device
        self.rating_ids = torch.tensor(list(rating_ids), device=self.device)
        self.threads = torch.get_num_threads()
        on_cpu = self.device == "cpu"
        self.workers = workers or (min(self.threads, _MAX_WORKERS) if on_cpu else 1)
        self.tolerance = _TOLERANCE.get(loaded.dtype, _HALF_TOLERANCE)
        self._facts = BackendFacts(
            parameters=loaded.parameters,
            dtype=loaded.dtype,
            device=self.device,
            revision=loaded.revision,
            workers=self.workers,
            batch_tokens=usual_batch_tokens(loaded.model.config, self.device),
            weights_bytes=sum(w.numel() * w.element_size() for w in loaded.model.parameters()),
        )
        self._notes = BackendNotes()
        self._ways: dict[bool, str] = {}
        self._lock = threading.RLock()
        self._retries = RowRetries(self._prove, self._free_memory)
        self._prefixes = KeptPrefixes(lambda prefix: self._states(self._tensor(prefix)[None]))
        self._last_logits = LastLogits(self.model)

    @property
    def facts(self) -> BackendFacts:
        """What is recorded about the model."""
        return self._facts

    @property
    def notes(self) -> BackendNotes:
        """How rows are run, and warnings."""
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
        scores = self._retries.score(batch, self._rate, len(self.rating_ids))
        self._notes.halvings = self._retries.halvings
        return scores

    def _prove(self) -> None:
        """Run a row that is fine wherever the device is."""
        import torch

        with torch.inference_mode():
            self._plain(np.arange(2, dtype=np.int32))

    def _rate(self, batch: TokenBatch) -> LogProbabilities:
        import torch

        # without a prefix the fastest way is whole rows, which says nothing of prefixes
        kind = len(batch.prefix) > 0
        with torch.inference_mode(), self._one_thread_each():
            if kind not in self._ways:
                with self._lock:
                    if kind not in self._ways:
                        return self._choose_way(batch, kind)
            return self._run(batch, self._ways[kind])

    # --- which way --------------------------------------------------------------------------

    def _choose_way(self, batch: TokenBatch, kind: bool) -> LogProbabilities:
        """Rate a first batch by the fastest way that agrees with the plain one; keep that way."""
        probes = sorted({0, len(batch) - 1})
        plain = np.stack([self._plain(batch.row(index)) for index in probes])
        for way in _WAYS if kind else _WAYS[1:]:
            try:
                found = self._run(batch, way)
            except (TypeError, ValueError, AttributeError, IndexError, NotImplementedError) as e:
                self._notes.warnings.append(f"{way} batches do not work on this model: {e}")
                continue
            away = _distance(found[probes], plain)
            if away <= self.tolerance:
                break
            self._notes.warnings.append(
                f"{way} batches differ from the plain way by {away:.2g} on this model; "
                "a slower way is used"
            )
        self._ways[kind] = way
        if kind or not self._notes.mode:
            self._notes.mode = way
        return found

    def _run(self, batch: TokenBatch, way: str) -> LogProbabilities:
        if way == "single":
            return np.stack([self._plain(batch.row(index)) for index in range(len(batch))])
        if way == "padded":
            return self._padded([batch.row(index) for index in range(len(batch))])
        return self._shared_prefix(batch)

    def _plain(self, row: Tokens) -> LogProbabilities:
        """Rate one row through the untouched model: (R,) float32."""
        logits = self.model(input_ids=self._tensor(row)[None], use_cache=False).logits
        return self._rated(logits[:, -1].float())[0]

    def _padded(self, rows: Sequence[Tokens]) -> LogProbabilities:
        """Rate whole rows, padded on the right."""
        tokens, last = self._pad(rows)
        return self._rated(self._last_logits(last, input_ids=tokens, use_cache=False))

    def _shared_prefix(self, batch: TokenBatch) -> LogProbabilities:
        """Rate rows that continue one prefix, whose keys and values are computed once."""
        tokens, last = self._pad(batch.suffixes)
        states = self._prefixes.states(batch.prefix)
        shape = (len(batch), -1, -1, -1)
        cache = lent_cache([(keys.expand(shape), values.expand(shape)) for keys, values in states])
        return self._rated(
            self._last_logits(last, input_ids=tokens, past_key_values=cache, use_cache=True)
        )

    # --- pieces -----------------------------------------------------------------------------

    def _tensor(self, row: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.asarray(row, dtype=np.int64)).to(self.device)

    def _pad(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (rows, longest), padded on the right, and last positions (rows,)."""
        lengths = np.array([len(row) for row in rows])
        tokens = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
        return self._tensor(tokens), self._tensor(lengths - 1)

    def _rated(self, logits: torch.Tensor) -> LogProbabilities:
        """Return log-probabilities of the rating tokens from (rows, vocabulary) logits."""
        chosen = logits[:, self.rating_ids.to(logits.device)] - logits.logsumexp(
            dim=-1, keepdim=True
        )
        return chosen.cpu().numpy()

    def _states(self, tokens: torch.Tensor) -> States:
        """Run prefixes of one length, (rows, positions), for their keys and values."""
        from transformers import DynamicCache

        cache = DynamicCache()
        last = self._tensor(np.zeros(len(tokens), dtype=np.int64))
        self._last_logits(last, input_ids=tokens, past_key_values=cache, use_cache=True)
        return states_of(cache)

    @contextlib.contextmanager
    def _one_thread_each(self) -> Iterator[None]:
        """Share the CPU's threads out among the workers while the block runs."""
        import torch

        if self.device != "cpu":
            yield
            return
        torch.set_num_threads(max(1, self.threads // self.workers))
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    def _free_memory(self) -> None:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def usual_batch_tokens(config: Any, device: str) -> int:  # noqa: ANN401 - one class per model
    """Return the token positions of a batch that suit a device and a model's width unmeasured."""
    if device != "cpu":
        return _GPU_BATCH_TOKENS
    fewest, most = _CPU_BATCH_TOKENS
    width = getattr(config.get_text_config(), "hidden_size", None) or _CPU_BATCH_VALUES
    return int(np.clip(_CPU_BATCH_VALUES // width, fewest, most))


def _distance(found: LogProbabilities, plain: LogProbabilities) -> float:
    """Return the largest difference in P'; none where both are not numbers."""
    both = rating_distribution(found), rating_distribution(plain)
    if np.isnan(both[1]).any():
        return 0.0
    away = float(np.abs(both[0] - both[1]).max())
    return np.inf if np.isnan(away) else away
