"""The output layer: only the positions that are asked for meet it, and in float32.

Half-precision logits would round away what a rating distribution is made of. The layer is
replaced inside the model, so scalings and caps after it stay in force.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from selectit_dagster.inference.packed_linear import packed_product

if TYPE_CHECKING:
    import torch

    Product = Callable[[torch.Tensor], torch.Tensor]

# above this an output layer in float32 is made piece by piece instead of being kept
_HEAD_BYTES = 1 << 29


class OutputLayer:
    """Runs a model for its logits at some positions of each row; several threads may.

    Parameters
    ----------
    model:
        Its output layer is replaced. The layer does as before where the model is called
        directly.
    packed:
        Multiply by weights that are packed for oneDNN.
    """

    def __init__(self, model: Any, *, packed: bool = False) -> None:  # noqa: ANN401
        self.model = model
        head = model.get_output_embeddings()
        self._local = getattr(head, "_asked_places", None) or threading.local()
        # a model may get a second runner: its layer is replaced once
        if head is not None and not hasattr(head, "_asked_places"):
            head._asked_places = self._local
            _replace(head, self._local, packed)

    def __call__(self, places: torch.Tensor, **inputs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return float32 logits (rows, places, vocabulary) at ``places`` (rows, places)."""
        with self._only(places):
            logits = self.model(**inputs).logits
            picked = self._local.picked
        # a model that multiplies by its output layer's weight past the layer itself
        return logits.float() if picked else _pick(logits, places).float()

    @contextlib.contextmanager
    def _only(self, places: torch.Tensor) -> Iterator[None]:
        self._local.places, self._local.picked = places, False
        try:
            yield
        finally:
            self._local.places = None


def _pick(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    import torch

    # a model that is spread over devices ends on another one than it begins
    rows = torch.arange(len(places), device=values.device)[:, None]
    return values[rows, places.to(values.device)]


def _replace(head: Any, local: threading.local, packed: bool) -> None:  # noqa: ANN401
    """Let the output layer see only the asked positions, and multiply in float32."""
    import torch

    original = head.forward
    product = _float32_product(head, packed) if type(head) is torch.nn.Linear else original

    def forward(hidden: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401
        places = getattr(local, "places", None)
        # what is not (rows, positions, width) is left to the model
        if places is None or hidden.dim() != 3 or more or named:
            return original(hidden, *more, **named)
        local.picked = True
        return product(_pick(hidden, places))

    head.forward = forward


def _float32_product(head: torch.nn.Linear, packed: bool) -> Product:
    """Return ``hidden -> logits`` with the layer's weights taken as float32."""
    import torch
    from torch.nn.functional import linear

    weight, bias = head.weight, head.bias
    size = weight.numel() * 4
    if weight.dtype == torch.float32 or size <= _HEAD_BYTES:
        kept = weight.detach().float()
        bias32 = None if bias is None else bias.detach().float()
        if packed:
            product32 = packed_product(kept, bias32)
            return lambda hidden: product32(hidden.float())
        return lambda hidden: linear(hidden.float(), kept, bias32)
    pieces = -(-size // (_HEAD_BYTES // 2))

    def product(hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        parts = [linear(wide, piece.float()) for piece in weight.chunk(pieces)]
        logits = torch.cat(parts, dim=-1)
        return logits if bias is None else logits + bias.float()

    return product
