"""vLLM's server: token ids to ``/v1/completions``, log-probabilities of named tokens back."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import LogProbabilities, TokenBatch
from selectit_dagster.inference.backends.server_kind import (
    UNKNOWN,
    Asking,
    EngineFacts,
    ServerKind,
    WrongServerError,
    chosen_model,
    register_server,
    require_numbers,
)

_NEEDED = "0.32"
# low ids are hardly ever a model's likeliest tokens: an old server does not return them all
_PROBE = TokenBatch(np.array([0], dtype=np.int32), (np.array([1], dtype=np.int32),))
_PROBE_IDS = (0, 1, 2, 3, 4)


@register_server("vllm")
class Vllm(ServerKind):
    """vLLM from 0.32 on, as ``vllm serve`` starts it."""

    def facts(self, ask: Asking, model: str | None) -> EngineFacts:
        """Ask for version, model, context and, of a server that tells, its configuration."""
        version, info = UNKNOWN, {}
        with contextlib.suppress(UserError):
            version = str(ask("/version")["version"])
        entry = chosen_model(ask("/v1/models"), model)
        with contextlib.suppress(UserError):  # there only with VLLM_SERVER_DEV_MODE=1
            info = ask("/server_info?config_format=json")
        answer = self._ask(ask, entry["id"], _PROBE, _PROBE_IDS)
        self._values(answer, _PROBE, _PROBE_IDS, version)
        config = _inside(info, "vllm_config", "model_config")
        length = entry.get("max_model_len")
        said = {name: str(config.get(name)) for name in ("dtype", "quantization")}
        invariant = _inside(info, "vllm_env").get("VLLM_BATCH_INVARIANT", UNKNOWN)
        setup = answer.get("system_fingerprint")
        return EngineFacts(
            engine="vllm",
            version=version,
            model=entry["id"],
            # the server makes one token after the prompt, and that must fit as well
            longest=length - 1 if isinstance(length, int) else None,
            dtype=said["dtype"].removeprefix("torch.") if config else UNKNOWN,
            quantization=said["quantization"] if config else UNKNOWN,
            batch_invariant=str(invariant),
            setup=setup if isinstance(setup, str) and not config else UNKNOWN,
        )

    def score(
        self, ask: Asking, model: str, batch: TokenBatch, ids: tuple[int, ...]
    ) -> LogProbabilities:
        """Score a batch in one request."""
        answer = self._ask(ask, model, batch, ids)
        values = self._values(answer, batch, ids, "of this address")
        return require_numbers(values, len(batch), len(ids))

    def _ask(
        self, ask: Asking, model: str, batch: TokenBatch, ids: tuple[int, ...]
    ) -> dict[str, Any]:
        body = {
            "model": model,
            "prompt": [batch.row(index).tolist() for index in range(len(batch))],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(ids),
            "logprob_token_ids": list(ids),
            "return_tokens_as_token_ids": True,
        }
        answer = ask("/v1/completions", body)
        return answer if isinstance(answer, dict) else {}

    def _values(
        self, answer: dict[str, Any], batch: TokenBatch, ids: tuple[int, ...], version: str
    ) -> list[list[Any]]:
        """Return R values a row, in the order of the rows.

        Raises
        ------
        WrongServerError
            When a row, or one of the tokens, did not come back, or a prompt was cut.
        """
        choices = answer.get("choices") or []
        by_row = {choice.get("index"): choice for choice in choices if isinstance(choice, dict)}
        values = []
        for row in range(len(batch)):
            tops = _inside(by_row.get(row), "logprobs").get("top_logprobs") or [{}]
            top = tops[0] if isinstance(tops[0], dict) else {}
            if any(f"token_id:{one}" not in top for one in ids):
                raise WrongServerError(
                    f"the vLLM server {version} does not return the log-probabilities of named "
                    "tokens (it ignores logprob_token_ids)",
                    hint=f"upgrade the server to vLLM {_NEEDED} or later",
                )
            values.append([top[f"token_id:{one}"] for one in ids])
        read = _inside(answer, "usage").get("prompt_tokens")
        if isinstance(read, int) and read != batch.tokens:
            raise WrongServerError(
                f"the vLLM server read {read} prompt tokens of the {batch.tokens} that were sent: "
                "it cuts prompts, or adds tokens to them",
                hint="start it without truncation, for instance as `vllm serve MODEL`",
            )
        return values


def _inside(value: Any, *names: str) -> dict[str, Any]:  # noqa: ANN401 - whatever was answered
    """Return the mapping under ``names``, an empty one where there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}
