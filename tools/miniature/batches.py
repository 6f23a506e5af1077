"""Recipes of the base models, and the batches that they are trained on."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tools.miniature.corpus import EARLY, LATE, Stage, document
from tools.miniature.tokenizer import BOS, EOS, PAD

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Leg:
    """A part of a training run: a cosine of the learning rate, left when the next leg starts.

    The cosine starts at step `first` with `peak_rate` and would reach a fiftieth of it at step
    `horizon`. Wrong answers in the early text are all plausible slips; in the late text half of
    them answer another question, and hard families come oftener.
    """

    first: int
    peak_rate: float
    horizon: int
    early_text: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights of one model, besides machine and versions.

    The first leg begins after the warm-up. A model that is `grown_from` another starts as that
    one, twice as wide.
    """

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    steps: int
    legs: tuple[Leg, ...]
    grown_from: str | None = None
    rows: int = 8
    row_length: int = 256
    weight_decay: float = 0.05
    seed: int = 7

    def leg(self, step: int) -> Leg:
        """Return the leg that `step` belongs to."""
        started = [leg for leg in self.legs if leg.first <= step]
        return started[-1] if started else self.legs[0]


# The small model's last leg was added when the loss on its rating digits showed that it had
# learnt to judge. The large one grows from it because learning to judge from nothing takes a
# model of its size twice the hours that the small one takes.
RECIPES: Final[dict[str, Recipe]] = {
    "small": Recipe(
        name="small", width=96, inner=256, layers=4, heads=3, steps=12_600,
        legs=(
            Leg(300, 3e-3, 15_000, early_text=True), Leg(5_200, 2.5e-3, 15_000),
            Leg(12_000, 8e-4, 12_600),
        ),
    ),
    "large": Recipe(
        name="large", width=192, inner=512, layers=4, heads=6, steps=2_000,
        legs=(Leg(100, 1.2e-3, 2_000),), grown_from="small",
    ),
}  # fmt: skip


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
    stage = EARLY if recipe.leg(step).early_text else LATE
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
