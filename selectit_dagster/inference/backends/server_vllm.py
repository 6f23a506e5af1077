"""vLLM's server: token ids to ``/v1/completions``, log-probabilities of named tokens back."""

from __future__ import annotations

from typing import Any

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

_NEEDED = "0.32"
# low ids are hardly ever a model's likeliest tokens: an old server does not return them all
_PROBE_IDS = (0, 1, 2, 3, 4)


@register_server("vllm")
class Vllm(ServerKind):
    """vLLM from 0.32 on, as ``vllm serve`` starts it."""

    def facts(self, ask: Asking, model: str | None) -> EngineFacts:
        """Ask for version, model, context and, of a server that tells, its configuration."""
        version = str(told(ask, "/version").get("version", UNKNOWN))
        entry = chosen_model(ask("/v1/models"), model)
        # there only with VLLM_SERVER_DEV_MODE=1
        info = told(ask, "/server_info?config_format=json")
        answer = self._ask(ask, entry["id"], PROBE, _PROBE_IDS)
        self._values(answer, PROBE, _PROBE_IDS, version)
        config = inside(info, "vllm_config", "model_config")
        length = entry.get("max_model_len")
        said = {name: str(config.get(name)) for name in ("dtype", "quantization")}
        invariant = inside(info, "vllm_env").get("VLLM_BATCH_INVARIANT", UNKNOWN)
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
            "prompt": batch.rows(),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(ids),
            "logprob_token_ids": list(ids),
            "return_tokens_as_token_ids": True,
        }
        return inside(ask("/v1/completions", body))

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
            tops = inside(by_row.get(row), "logprobs").get("top_logprobs") or [{}]
            top = tops[0] if isinstance(tops[0], dict) else {}
            if any(f"token_id:{one}" not in top for one in ids):
                raise WrongServerError(
                    f"the vLLM server {version} does not return the log-probabilities of named "
                    "tokens (it ignores logprob_token_ids)",
                    hint=f"upgrade the server to vLLM {_NEEDED} or later",
                )
            values.append([top[f"token_id:{one}"] for one in ids])
        read = inside(answer, "usage").get("prompt_tokens")
        if isinstance(read, int) and read != batch.tokens:
            raise WrongServerError(
                f"the vLLM server read {read} prompt tokens of the {batch.tokens} that were sent: "
                "it cuts prompts, or adds tokens to them",
                hint="start it without truncation, for instance as `vllm serve MODEL`",
            )
        return values
