"""The output layer: only each row's last position meets it, and in float32.

Half-precision logits would round away what the rating distribution is made of. The layer is
replaced inside the model, so scalings and caps after it stay in force.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# above this an output layer in float32 is made piece by piece instead of being kept
_HEAD_BYTES = 1 << 29


class LastLogits:
    """Runs a model for the logits after each row's last position; several threads may.

    Parameters
    ----------
    model:
        Its output layer is replaced. The layer does as before where the model is called
        directly.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - one class per architecture
        self.model = model
        self._local = threading.local()
        self._replace_head()

    def __call__(self, last: torch.Tensor, **inputs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return (rows, vocabulary) float32 logits after the positions ``last`` (rows,)."""
        import torch

        with self._only(last):
            logits = self.model(**inputs).logits
        if logits.shape[1] == 1:
            return logits[:, 0].float()
        # a model that multiplies by its output layer's weight past the layer itself
        rows = torch.arange(len(last), device=logits.device)
        return logits[rows, last.to(logits.device)].float()

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
    def _only(self, last: torch.Tensor) -> Iterator[None]:
        self._local.last = last
        try:
            yield
        finally:
            self._local.last = None


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
