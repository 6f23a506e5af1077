"""A key/value cache that grows in place.

The library's own layer concatenates, so every generated token copies the whole cache, the
shared prefix included. This one keeps spare room and writes into it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ROOM = 64


@cache
def _layer_class() -> type[Any]:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """Keys and values of one layer, ``(rows, heads, positions, size)``, with spare room.

        ``keys`` and ``values`` are views of the filled part of ``_room_keys`` and
        ``_room_values``.
        """

        _layer_type = None

        def update(
            self,
            key_states: torch.Tensor,
            value_states: torch.Tensor,
            *args: Any,  # noqa: ANN401 - the library's own signature
            **kwargs: Any,  # noqa: ANN401
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """Append the new positions and return all keys and values."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self._room_keys = self._room_values = key_states[..., :0, :]
                self._filled = 0
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

        def expanded(self, rows: int) -> GrowingLayer:
            """Return a layer whose ``rows`` rows all begin with this one's single row."""
            copy = GrowingLayer()
            copy.lazy_initialization(self.keys, self.values)
            copy._filled = self._filled
            # a view: the first update copies it into room of its own
            copy._room_keys = self.keys.expand(rows, -1, -1, -1)
            copy._room_values = self.values.expand(rows, -1, -1, -1)
            copy._show()
            return copy

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            """Keep only the rows ``indices``."""
            self._room_keys = self._room_keys[indices]
            self._room_values = self._room_values[indices]
            self._show()

    return GrowingLayer


def growing_cache(layers: int) -> Any:  # noqa: ANN401 - a transformers Cache
    """Return an empty cache of ``layers`` growing layers."""
    from transformers.cache_utils import DynamicCache

    result = DynamicCache()
    result.layers = [_layer_class()() for _ in range(layers)]
    result.layer_class_to_replicate = None
    return result
