"""The local backend: a transformers model, run so that only the needed work is done.

* A shared prefix runs once; its keys and values are lent to every batch, expanded without
  a copy. Rows are padded on the right, where a causal model needs no mask for it.
* Only each row's last hidden state meets the output layer, in float32 whatever the model's
  dtype, because half-precision logits round away what the rating distribution is made of.
  The layer is replaced inside the model, so scalings and caps after it stay in force.
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

from selectit_dagster.rating.backend import (
    BackendFacts,
    BackendNotes,
    BatchTooLargeError,
    LogProbabilities,
    TokenBatch,
    Tokens,
)
from selectit_dagster.rating.levels import rating_distribution

if TYPE_CHECKING:
    import torch

    from selectit_dagster.models import LoadedModel

_WAYS = ("prefix", "padded", "single")
# on a CPU a batch's activations should stay in the cache: 512 positions of a width of 768;
# a narrower model takes more, so that its many small steps cost less to start
_CPU_BATCH_TOKENS = (512, 2048)
_CPU_BATCH_VALUES = 512 * 768
_GPU_BATCH_TOKENS = 16_384
_MAX_WORKERS = 8
# above this an output layer in float32 is made piece by piece instead of being kept
_HEAD_BYTES = 1 << 29
_KEPT_PREFIXES = 32
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
        self._prefixes: dict[bytes, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._local = threading.local()
        self._replace_head()

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

    def rate(self, batch: TokenBatch) -> LogProbabilities:
        """Return (rows, R) float32 log-probabilities; see the protocol."""
        import torch

        shared = len(batch.prefixes) == 1
        try:
            with torch.inference_mode(), self._one_thread_each():
                if shared not in self._ways:
                    with self._lock:
                        if shared not in self._ways:
                            return self._choose_way(batch, shared)
                return self._run(batch, self._ways[shared])
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._free_memory()
            raise BatchTooLargeError(str(error)) from error
        except RuntimeError as error:
            if "allocate memory" not in str(error) and "out of memory" not in str(error):
                raise
            self._free_memory()
            raise BatchTooLargeError(str(error)) from error

    # --- which way --------------------------------------------------------------------------

    def _choose_way(self, batch: TokenBatch, shared: bool) -> LogProbabilities:
        """Rate a first batch by the fastest way that agrees with the plain one; keep that way."""
        probes = sorted({0, len(batch) - 1})
        plain = np.stack([self._plain(batch.row(index)) for index in probes])
        for way in _WAYS:
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
        self._ways[shared] = way
        self._notes.way = way
        return found

    def _run(self, batch: TokenBatch, way: str) -> LogProbabilities:
        if way == "single":
            return np.stack([self._plain(batch.row(index)) for index in range(len(batch))])
        if way == "padded":
            return self._padded([batch.row(index) for index in range(len(batch))])
        if not len(batch.prefixes[0]):
            return self._padded(list(batch.suffixes))
        if len(batch.prefixes) == 1:
            return self._shared_prefix(batch)
        return self._several_prefixes(batch)

    def _plain(self, row: Tokens) -> LogProbabilities:
        """Rate one row through the untouched model: (R,) float32."""
        logits = self.model(input_ids=self._tensor(row)[None], use_cache=False).logits
        return self._rated(logits[:, -1].float())[0]

    def _padded(self, rows: Sequence[Tokens]) -> LogProbabilities:
        """Rate whole rows, padded on the right."""
        tokens, last = self._pad(rows)
        with self._last_positions(last):
            return self._rated(self._logits(last, input_ids=tokens, use_cache=False))

    def _shared_prefix(self, batch: TokenBatch) -> LogProbabilities:
        """Rate rows that continue one prefix, whose keys and values are computed once."""
        tokens, last = self._pad(batch.suffixes)
        states = self._prefix_states(batch.prefixes[0])
        shape = (len(batch), -1, -1, -1)
        cache = _lent_cache([(keys.expand(shape), values.expand(shape)) for keys, values in states])
        with self._last_positions(last):
            return self._rated(
                self._logits(last, input_ids=tokens, past_key_values=cache, use_cache=True)
            )

    def _several_prefixes(self, batch: TokenBatch) -> LogProbabilities:
        """Rate rows that continue prefixes of one length, each run once for all its rows."""
        import torch

        if len({len(prefix) for prefix in batch.prefixes}) > 1:
            # padding between a prefix and its suffixes would need masks, positions, and
            # sliding windows that skip it, which architectures treat differently
            raise ValueError("prefixes that run together must be of one length")
        states = self._states(self._tensor(np.stack(batch.prefixes)))
        which = torch.tensor(batch.prefix_of, device=self.device)
        cache = _lent_cache([(keys[which], values[which]) for keys, values in states])
        tokens, last = self._pad(batch.suffixes)
        with self._last_positions(last):
            return self._rated(
                self._logits(last, input_ids=tokens, past_key_values=cache, use_cache=True)
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

    def _logits(self, last: torch.Tensor, **inputs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return the logits after each row's last position, (rows, vocabulary) float32."""
        import torch

        logits = self.model(**inputs).logits
        if logits.shape[1] == 1:
            return logits[:, 0].float()
        # a model that multiplies by its output layer's weight past the layer itself
        rows = torch.arange(len(last), device=logits.device)
        return logits[rows, last.to(logits.device)].float()

    def _rated(self, logits: torch.Tensor) -> LogProbabilities:
        """Return log-probabilities of the rating tokens from (rows, vocabulary) logits."""
        chosen = logits[:, self.rating_ids.to(logits.device)] - logits.logsumexp(
            dim=-1, keepdim=True
        )
        return chosen.cpu().numpy()

    def _prefix_states(self, prefix: Tokens) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each layer's keys and values of one prefix, computed the first time."""
        key = prefix.tobytes()
        states = self._prefixes.get(key)
        if states is None:
            states = self._states(self._tensor(prefix)[None])
            with self._lock:
                while len(self._prefixes) >= _KEPT_PREFIXES:
                    self._prefixes.pop(next(iter(self._prefixes)))
                self._prefixes[key] = states
        return states

    def _states(self, tokens: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each layer's keys and values, (rows, heads, positions, size)."""
        from transformers import DynamicCache

        cache = DynamicCache()
        last = self._tensor(np.zeros(len(tokens), dtype=np.int64))
        with self._last_positions(last):
            self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        states = [(layer.keys, layer.values) for layer in cache.layers]
        if not states or any(keys is None or not keys.numel() for keys, _ in states):
            raise NotImplementedError("it keeps no keys and values per layer")
        return states

    def _replace_head(self) -> None:
        """Let the output layer see only the last positions, and multiply in float32."""
        import torch

        head = self.model.get_output_embeddings()
        if head is None:
            return
        original = head.forward
        linear = type(head) is torch.nn.Linear
        product = _float32_product(head) if linear else original

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            last = getattr(self._local, "last", None)
            if last is None:
                return original(hidden)
            rows = torch.arange(len(last), device=hidden.device)
            # a model that is spread over devices ends on another one than it begins
            return product(hidden[rows, last.to(hidden.device)])[:, None]

        head.forward = forward

    @contextlib.contextmanager
    def _last_positions(self, last: torch.Tensor) -> Iterator[None]:
        self._local.last = last
        try:
            yield
        finally:
            self._local.last = None

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


def _float32_product(head: torch.nn.Linear) -> Any:  # noqa: ANN401 - a function of a tensor
    """Return ``hidden -> logits`` with the layer's weights taken as float32."""
    import torch
    from torch.nn.functional import linear

    weight, bias = head.weight, head.bias
    size = weight.numel() * 4
    if weight.dtype == torch.float32 or size <= _HEAD_BYTES:
        kept = weight.detach().float()
        bias32 = None if bias is None else bias.detach().float()
        return lambda hidden: linear(hidden.float(), kept, bias32)
    pieces = -(-size // (_HEAD_BYTES // 2))

    def product(hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        parts = [linear(wide, piece.float()) for piece in weight.chunk(pieces)]
        logits = torch.cat(parts, dim=-1)
        return logits if bias is None else logits + bias.float()

    return product


def _lent_cache(states: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:  # noqa: ANN401
    """Return a cache that begins with ``states``, (rows, heads, positions, size) per layer.

    Its layers hand out what they are given and keep nothing, so that a batch's own keys and
    values live only as long as their layer runs.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    cache.layers = []
    for keys, values in states:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        layer.update = _handing_out(keys, values)
        cache.layers.append(layer)
    return cache


def _handing_out(before_k: torch.Tensor, before_v: torch.Tensor) -> Any:  # noqa: ANN401
    def update(keys: torch.Tensor, values: torch.Tensor, *_: object, **__: object) -> Any:  # noqa: ANN401
        import torch

        return torch.cat([before_k, keys], dim=-2), torch.cat([before_v, values], dim=-2)

    return update


def _distance(found: LogProbabilities, plain: LogProbabilities) -> float:
    """Return the largest difference in P'; none where both are not numbers."""
    both = rating_distribution(found), rating_distribution(plain)
    if np.isnan(both[1]).any():
        return 0.0
    away = float(np.abs(both[0] - both[1]).max())
    return np.inf if np.isnan(away) else away
