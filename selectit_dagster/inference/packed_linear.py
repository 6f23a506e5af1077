"""float32 linear layers on a CPU, with their weights packed once for oneDNN.

torch multiplies float32 matrices through MKL, which is slow on some processors; oneDNN with
packed weights reached 2.3 times its rate on one of AMD's. The operators are those that
torch's own compiler emits, and private: so they are tried once per process, and used only
where they exist, agree and are faster.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
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
