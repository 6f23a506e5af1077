"""The plain way: one row at a time, no cache, float32, the library's own forward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class PlainWay:
    """A copy of a model, for which nothing ever ran before."""

    def __init__(self, model: Any, *, remembers: bool = False) -> None:
        self.model = copy.deepcopy(model)
        # a model that remembers the longest sequence gets a fresh copy each time
        self.untouched = copy.deepcopy(model) if remembers else None

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Return logits (positions, vocabulary)."""
        model = self.model if self.untouched is None else copy.deepcopy(self.untouched)
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()

    def log_p(self, ids: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
        """Return the log-probabilities of ``chosen`` after a row."""
        return torch.log_softmax(self.logits(ids)[-1], -1)[list(chosen)].numpy()

    def likelihood(self, ids: Sequence[int], continuation: int) -> float:
        """Return the log-likelihood of a row's last ``continuation`` tokens."""
        logs = torch.log_softmax(self.logits(ids[:-1]), -1)
        places = range(len(ids) - continuation, len(ids))
        return float(sum(logs[place - 1, ids[place]] for place in places))

    def greedy(
        self, ids: Sequence[int], steps: int, ends: Sequence[int]
    ) -> tuple[list[int], float]:
        """Return a greedy answer, and the smallest lead that its tokens had over the next best."""
        said: list[int] = []
        lead = float("inf")
        while len(said) < steps:
            best = self.logits([*ids, *said])[-1].topk(2)
            lead = min(lead, float(best.values[0] - best.values[1]))
            token = int(best.indices[0])
            if token in ends:
                break
            said.append(token)
        return said, lead
