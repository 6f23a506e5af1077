"""Widen a trained Llama model to twice its width without changing what it computes."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Twins that start alike stay alike; this share of noise lets them part.
_NOISE: Final = 0.1


def grow(source: "PreTrainedModel", target: "PreTrainedModel", noise: float = _NOISE) -> None:
    """Fill `target`, twice as wide with twice the heads, from `source`; both have tied embeddings.

    Every hidden value h becomes the pair (h, h). A weight matrix W becomes [[W, W], [W, W]] / 2,
    which maps a pair to a pair, and the last normalisation is halved because the output products
    run over both halves. With `noise` 0 the two models give the same logits; otherwise each matrix
    gets normal noise of that share of its own standard deviation, from torch's generator.
    """
    import torch

    widened = {name: _wider(name, value, noise) for name, value in source.state_dict().items()}
    with torch.no_grad():
        target.load_state_dict(widened)
    target.tie_weights()


def _wider(name: str, value: "torch.Tensor", noise: float) -> "torch.Tensor":
    """Return one parameter of the wide model."""
    import torch

    if name == "model.norm.weight":
        return value.repeat(2) / 2
    if value.ndim == 1:
        return value.repeat(2)
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return value.repeat(1, 2)
    wide = value.repeat(2, 2) / 2
    return wide + noise * wide.std() * torch.randn_like(wide)
