"""Weights of the chosen records, and sampling in proportion to the score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from selectit_dagster.errors import UserError
from selectit_dagster.experiment.section import Section

Floats = npt.NDArray[np.float64]


class Weights(Section):
    """A weight per record from its score: a column for the training, or the chance to be drawn."""

    rule: Literal["proportional", "softmax"] = Field(
        "proportional", description="to the score, or to exp(score / temperature)"
    )
    temperature: float = Field(1.0, gt=0, description="softmax: the lower, the more unequal")
    sample: bool = Field(
        False, description="draw records by their weights instead of taking the best"
    )
    seed: int = Field(1, ge=0, description="seed of the draw")


def weights_of(setting: Weights, scores: Floats, *, higher_is_better: bool | None) -> Floats:
    """Return (n,) weights with mean 1.

    Raises
    ------
    UserError
        When there is no score to weigh by, or it cannot be a weight.
    """
    if higher_is_better is None or np.isnan(scores).any():
        raise UserError(
            "weights need a score of which high or low is better, which this arm does not have",
            hint="take the weights away from this arm",
        )
    if setting.rule == "softmax":
        signed = (scores if higher_is_better else -scores) / setting.temperature
        raw = np.exp(signed - signed.max(initial=-np.inf))
    elif not higher_is_better or (scores < 0).any() or not scores.sum() > 0:
        raise UserError(
            "weights in proportion to the score need scores of at least 0, the higher the better",
            hint="use weights: {rule: softmax}",
        )
    else:
        raw = scores
    return np.asarray(raw / raw.mean()) if len(raw) else raw


def drawn_order(setting: Weights, ids: Sequence[str], weights: Floats) -> npt.NDArray[np.int64]:
    """Return (n,) indices in the order of a weighted draw without replacement.

    Each record has the key log(u) / weight, u uniform from the SHA-256 of ``<seed>:<record
    id>``; the highest keys go first (Efraimidis and Spirakis 2006). No file order counts.
    """
    hashes = (hashlib.sha256(f"{setting.seed}:{name}".encode()).digest()[:8] for name in ids)
    u = (np.array([int.from_bytes(h, "big") for h in hashes], np.float64) + 0.5) / 2.0**64
    with np.errstate(divide="ignore"):
        keys = np.log(u) / weights
    return np.argsort(-keys, kind="stable")
