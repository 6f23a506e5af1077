"""SGLang's server: ``/v1/score`` with the shared prefix as query and the rest as items.

Written after the published description of that call and tried against a stand-in alone: no real
SGLang has answered it yet, so compare with `selectit doctor` before its scores are trusted.
Its multi-item mode, which puts a delimiter between items, must be off (as it is by default).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selectit_dagster.inference.backends.protocol import LogProbabilities, TokenBatch
from selectit_dagster.inference.backends.server_kind import (
    PROBE,
    UNKNOWN,
    Asking,
    EngineFacts,
    ServerKind,
    WrongServerError,
    chosen_model,
    inside,
    register_server,
    require_numbers,
    told,
)

# what SGLang keeps free of its context beside the prompt
_KEPT_FREE = 6
# the probability 0 as a log-probability, as vLLM gives it
_NOTHING = -9999.0
_PROBE_IDS = (0, 1, 2)


@register_server("sglang")
class Sglang(ServerKind):
    """SGLang, as ``python -m sglang.launch_server`` starts it."""

    def facts(self, ask: Asking, model: str | None) -> EngineFacts:
        """Ask for the model, its context and the server's arguments."""
        entry = chosen_model(ask("/v1/models"), model)
        info = told(ask, "/get_server_info")
        if info.get("multi_item_scoring_delimiter") is not None:
            raise WrongServerError(
                "the SGLang server runs in multi-item mode, which changes the prompts",
                hint="start it without --multi-item-scoring-delimiter",
            )
        self.score(ask, entry["id"], PROBE, _PROBE_IDS)
        longest, length = info.get("max_req_input_len"), entry.get("max_model_len")
        if not isinstance(longest, int):
            longest = length - _KEPT_FREE if isinstance(length, int) else None
        said = {name: info.get(name) for name in ("dtype", "quantization")}
        return EngineFacts(
            engine="sglang",
            version=str(info.get("version", UNKNOWN)),
            model=entry["id"],
            longest=longest,
            # auto is not what the weights are held in
            dtype=UNKNOWN if said["dtype"] in (None, "auto") else str(said["dtype"]),
            quantization=str(said["quantization"]) if info else UNKNOWN,
            batch_invariant=str(info.get("enable_deterministic_inference", UNKNOWN)),
        )

    def score(
        self, ask: Asking, model: str, batch: TokenBatch, ids: tuple[int, ...]
    ) -> LogProbabilities:
        """Score a batch: one request where rows share their beginning, else one a row."""
        if len(batch.prefix):
            return self._score(ask, model, batch.prefix, list(batch.suffixes), ids)
        each = [self._score(ask, model, row[:1], [row[1:]], ids) for row in batch.suffixes]
        return np.concatenate(each)

    def _score(
        self,
        ask: Asking,
        model: str,
        query: np.ndarray,
        items: list[np.ndarray],
        ids: tuple[int, ...],
    ) -> LogProbabilities:
        body = {
            "model": model,
            "query": query.tolist(),
            "items": [item.tolist() for item in items],
            "label_token_ids": list(ids),
            "apply_softmax": False,
            "item_first": False,
        }
        scores = inside(ask("/v1/score", body)).get("scores")
        if not isinstance(scores, list) or not all(isinstance(row, list) for row in scores):
            raise WrongServerError(
                "the SGLang server does not answer /v1/score with scores",
                hint="upgrade the server to a version that has /v1/score",
            )
        # without the softmax over the labels these are probabilities over the whole vocabulary
        logs = [[_log(value) for value in row] for row in scores]
        return require_numbers(logs, len(items), len(ids))


def _log(probability: Any) -> float:  # noqa: ANN401 - whatever was answered
    if not isinstance(probability, int | float) or math.isnan(probability):
        return math.nan
    return math.log(probability) if probability > 0 else _NOTHING
