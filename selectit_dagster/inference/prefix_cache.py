"""Keys and values of what rows share: computed once, kept, and lent to each batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from selectit_dagster.inference.backends.protocol import Tokens

if TYPE_CHECKING:
    import torch

# each layer's keys and values, (rows, heads, positions, size)
States: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"

_KEPT_PREFIXES = 32


class KeptPrefixes:
    """The states of the last prefixes that came; several threads may ask.

    Parameters
    ----------
    compute:
        Runs one prefix through the model.
    """

    def __init__(self, compute: Callable[[Tokens], States]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._kept: dict[bytes, States] = {}

    def states(self, prefix: Tokens) -> States:
        """Return the states of one prefix, computed the first time."""
        key = prefix.tobytes()
        states = self._kept.get(key)
        if states is None:
            states = self._compute(prefix)
            with self._lock:
                while len(self._kept) >= _KEPT_PREFIXES:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[key] = states
        return states


def states_of(cache: Any) -> States:  # noqa: ANN401 - a transformers Cache
    """Return what a filled cache holds.

    Raises
    ------
    NotImplementedError
        When the model keeps something else.
    """
    states = [(layer.keys, layer.values) for layer in cache.layers]
    if not states or any(keys is None or not keys.numel() for keys, _ in states):
        raise NotImplementedError("it keeps no keys and values per layer")
    return states


def lent_cache(states: States) -> Any:  # noqa: ANN401 - a transformers Cache
    """Return a cache that begins with ``states``.

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
