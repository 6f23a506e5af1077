"""Linear layers: weights packed once for oneDNN, and the output layer at asked positions.

torch multiplies float32 matrices through MKL, which is slow on some processors; oneDNN with
packed weights reached 2.3 times its rate on one of AMD's. The operators are those that
torch's own compiler emits, and private: so they are tried once per process, and used only
where they exist, agree and are faster.

Only the positions that are asked for meet the output layer, and in float32: half-precision logits
would round away what a rating distribution is made of. It is replaced inside the model, so
scalings and caps after it stay in force.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Product = Callable[[torch.Tensor], torch.Tensor]

# multiplications below which the call itself costs more than packing saves
_WORTH = 1_000_000
_SMALLEST_WEIGHT = 128 * 128
_ROWS, _TRIED = 256, 512
_FASTER, _AGREES = 1.15, 1e-5
# packed weights are a second copy: they may take this share of the memory that is free
_MEMORY_SHARE = 0.5
# above this an output layer in float32 is made piece by piece instead of being kept
_HEAD_BYTES = 1 << 29


def pack_linear_layers(model: torch.nn.Module, device: str, dtype: str) -> str:
    """Let the model's linear layers multiply by packed weights; return what was done.

    A layer keeps its own weight, and small products go on using it. The answer is ``packed``,
    or why not: it is recorded.
    """
    import psutil
    import torch

    if device != "cpu" or dtype != "float32":
        return "plain: packing is for float32 on a CPU"
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and _is_worth(m)]
    if not layers:
        return "plain: its layers are too small for packing"
    if (why := unpackable()) is not None:
        return f"plain: {why}"
    size = sum(layer.weight.numel() * 4 for layer in layers)
    if size > _MEMORY_SHARE * psutil.virtual_memory().available:
        return "plain: too little memory for a second copy of the weights"
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = packed_product(layer.weight, layer.bias)
    return "packed"


def may_pack(layer: Any, device: str) -> bool:  # noqa: ANN401 - any output layer, or none
    """Tell whether a layer that multiplies in float32 gains from packed weights."""
    import torch

    return (
        device == "cpu"
        and type(layer) is torch.nn.Linear
        and _is_worth(layer)
        and unpackable() is None
    )


def packed_product(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """Return ``x -> x weightᵀ + bias`` for a float32 weight (out, in) that stays as it is."""
    import torch
    from torch.nn.functional import linear

    with torch.inference_mode():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    call, size = torch.ops.mkldnn._linear_pointwise, weight.numel()
    width = weight.shape[1]

    def product(hidden: torch.Tensor) -> torch.Tensor:
        small = hidden.numel() // width * size < _WORTH
        if small or hidden.dtype != torch.float32 or torch.is_grad_enabled():
            return linear(hidden, weight, bias)
        return call(hidden, packed, bias, "none", [], "")

    return product


@functools.cache
def unpackable() -> str | None:
    """Try the operators on this machine: None when they may be used, else why not."""
    import torch
    from torch.nn.functional import linear

    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        weight = torch.randn(_TRIED, _TRIED, generator=generator)
        hidden = torch.randn(_ROWS, _TRIED, generator=generator)
        try:
            packed = packed_product(weight, None)
            away = float((packed(hidden) - linear(hidden, weight)).abs().max())
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            return f"oneDNN's packed product is not in this torch ({type(error).__name__})"
        if not away <= _AGREES * _TRIED:
            return f"oneDNN's packed product differs by {away:.2g}"
        plain = _seconds(lambda: linear(hidden, weight))
        fast = _seconds(lambda: packed(hidden))
    return None if plain > _FASTER * fast else "oneDNN is no faster on this processor"


def _is_worth(layer: Any) -> bool:  # noqa: ANN401 - a torch.nn.Linear
    return layer.weight.numel() >= _SMALLEST_WEIGHT


def _seconds(call: Callable[[], object]) -> float:
    """Return the shortest of a few measurements: others may use the machine."""
    times = []
    for _ in range(7):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


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
