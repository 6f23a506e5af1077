"""KV caches: a prefix that is lent to a batch, and a cache that grows in place."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

# each layer's keys and values, (rows, heads, positions, size)
States: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"

_ROOM = 64


def states_of(cache: Any) -> States:  # noqa: ANN401 - a transformers Cache
    """Return what a filled cache holds.

    Raises
    ------
    NotImplementedError
        When the model keeps something else than all keys and values.
    """
    states = [(getattr(x, "keys", None), getattr(x, "values", None)) for x in cache.layers]
    if not states or any(keys is None or not keys.numel() for keys, _ in states):
        raise NotImplementedError("it keeps no keys and values per layer")
    return states


def lent_cache(states: States, rows: int) -> Any:  # noqa: ANN401 - a transformers Cache
    """Return a cache whose ``rows`` rows all begin with a single row's ``states``.

    Its layers hand out what they are given and keep nothing, so that a batch's own keys and
    values live only as long as their layer runs.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    cache.layers = []
    for one_keys, one_values in states:
        keys = one_keys.expand(rows, -1, -1, -1)
        values = one_values.expand(rows, -1, -1, -1)
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


def growing_cache(states: States | None, layers: int, rows: int) -> Any:  # noqa: ANN401
    """Return a transformers cache that grows in place, all rows beginning with ``states``.

    The library's own layer concatenates, so every generated token copies the whole cache, the
    shared prefix included. This one keeps spare room and writes into it.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.layers = [_growing_layer()() for _ in range(layers)]
    cache.layer_class_to_replicate = None
    for layer, (keys, values) in zip(cache.layers, states or (), strict=False):
        layer.begin_with(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
    return cache


@functools.cache
def _growing_layer() -> type[Any]:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """Keys and values of one layer, ``(rows, heads, positions, size)``, with spare room.

        ``keys`` and ``values`` are views of the filled part of ``_room_keys`` and
        ``_room_values``.
        """

        _layer_type = None

        def begin_with(self, keys: torch.Tensor, values: torch.Tensor) -> None:
            """Take the first positions as they are: the first update copies them."""
            self.lazy_initialization(keys, values)
            self._room_keys, self._room_values, self._filled = keys, values, keys.shape[-2]
            self._show()

        def update(
            self,
            key_states: torch.Tensor,
            value_states: torch.Tensor,
            *args: Any,  # noqa: ANN401 - the library's own signature
            **kwargs: Any,  # noqa: ANN401
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """Append the new positions and return all keys and values."""
            if not self.is_initialized:
                self.begin_with(key_states[..., :0, :], value_states[..., :0, :])
            end = self._filled + key_states.shape[-2]
            if end > self._room_keys.shape[-2]:
                self._room_keys = self._grown(self._room_keys, key_states, end + _ROOM)
                self._room_values = self._grown(self._room_values, value_states, end + _ROOM)
            self._room_keys[..., self._filled : end, :] = key_states
            self._room_values[..., self._filled : end, :] = value_states
            self._filled = end
            self._show()
            return self.keys, self.values

        def _grown(self, old: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
            room = new.new_empty((*new.shape[:-2], length, new.shape[-1]))
            if self._filled:
                room[..., : self._filled, :] = old[..., : self._filled, :]
            return room

        def _show(self) -> None:
            self.keys = self._room_keys[..., : self._filled, :]
            self.values = self._room_values[..., : self._filled, :]

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            """Keep only the rows ``indices``."""
            self._room_keys = self._room_keys[indices]
            self._room_values = self._room_values[indices]
            self._show()

    return GrowingLayer
