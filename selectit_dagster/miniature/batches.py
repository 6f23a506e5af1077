"""Recipes of the base models, and the batches that they are trained on."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from selectit_dagster.miniature.corpus import EARLY, LATE, Stage, document
from selectit_dagster.miniature.tokenizer import BOS, EOS, PAD

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights of one model, besides machine and versions."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    steps: int
    early_steps: int
    peak_rate: float
    late_peak_rate: float
    horizon: int
    rows: int = 8
    row_length: int = 256
    warmup: int = 300
    weight_decay: float = 0.05
    seed: int = 7


RECIPES: Final[dict[str, Recipe]] = {
    "small": Recipe(
        "small",
        96,
        256,
        4,
        3,
        steps=15_000,
        early_steps=5_200,
        peak_rate=3e-3,
        late_peak_rate=2.5e-3,
        horizon=15_000,
    ),
    "large": Recipe(
        "large",
        192,
        512,
        4,
        4,
        steps=8_200,
        early_steps=2_600,
        peak_rate=1.5e-3,
        late_peak_rate=1.8e-3,
        horizon=7_500,
    ),
}


def batch(
    recipe: Recipe, step: int, tokenizer: "PreTrainedTokenizerFast", guides: tuple[str, ...]
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return token ids (rows, length) int64 and loss weights (rows, length) float32.

    Whole documents are packed into rows, each closed by the end token; half of the rows open with
    the start token, so that the model reads texts with and without it. Later documents of a row see
    the earlier ones, which is harmless here and keeps the rows full.
    """
    import torch

    rng = random.Random(f"{recipe.name}:{recipe.seed}:{step}")  # noqa: S311 - repeatable
    ids = torch.full((recipe.rows, recipe.row_length), tokenizer.vocab[PAD])
    weights = torch.zeros(recipe.rows, recipe.row_length)
    start, end = tokenizer.vocab[BOS], tokenizer.vocab[EOS]
    stage = EARLY if step < recipe.early_steps else LATE
    stream = _encoded(rng, tokenizer, guides, stage)
    waiting = next(stream)
    for row in range(recipe.rows):
        row_ids, row_weights = ([start], [0.0]) if rng.random() < 0.5 else ([], [])
        while len(row_ids) + len(waiting[0]) + 1 <= recipe.row_length:
            row_ids += [*waiting[0], end]
            row_weights += [*waiting[1], 1.0]
            waiting = next(stream)
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        weights[row, : len(row_ids)] = torch.tensor(row_weights)
        while len(waiting[0]) + 2 > recipe.row_length:  # Never fits: draw another.
            waiting = next(stream)
    return ids, weights


def _encoded(
    rng: random.Random,
    tokenizer: "PreTrainedTokenizerFast",
    guides: tuple[str, ...],
    stage: Stage,
) -> Iterator[tuple[list[int], list[float]]]:
    """Yield documents as token ids and loss weights."""
    backend: Any = tokenizer.backend_tokenizer
    while True:
        pieces = document(rng, guides, stage)
        encodings = backend.encode_batch([text for text, _ in pieces], add_special_tokens=False)
        ids: list[int] = []
        weights: list[float] = []
        for encoding, (_text, weight) in zip(encodings, pieces, strict=True):
            ids += encoding.ids
            weights += [weight] * len(encoding.ids)
        yield ids, weights
