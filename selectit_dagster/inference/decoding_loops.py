"""Decoding loops: with one padded cache, with the library's own, and without any.

What the next tokens are is said by a function of the logits, so sampling, greedy decoding
and the trial of a mode go through the same loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from selectit_dagster.inference.execution_modes import EQUAL, PADDED, PREFIX
from selectit_dagster.inference.kv_cache import growing_cache

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.runner import ModelRunner

    # logits (rows alive, vocabulary) and the rows' numbers: next tokens, and who is finished
    Choose = Callable[[torch.Tensor, Sequence[int]], tuple[list[int], list[bool]]]

# finished rows leave the batch once they are this share of it; leaving copies the cache
_DROP_SHARE = 0.25
# rows end by their own limits, not by the library's
_NO_END = 1 << 20


def decode(
    runner: ModelRunner,
    mode: str,
    prompts: Sequence[Sequence[int]],
    prefix: int,
    choose: Choose,
) -> None:
    """Generate until ``choose`` says that every row is finished."""
    import torch

    with torch.inference_mode():
        if mode in (PREFIX, PADDED):
            _decode_padded(runner, prompts, prefix, choose)
        elif mode == EQUAL:
            _decode_by_library(runner, prompts, choose)
        else:
            for number, prompt in enumerate(prompts):
                _decode_recomputing(runner, prompt, number, choose)


def _decode_padded(
    runner: ModelRunner, prompts: Sequence[Sequence[int]], prefix: int, choose: Choose
) -> None:
    """Generate with one cache for all rows, which are padded on the left, after the prefix.

    The padding is masked and takes no position.
    """
    import torch

    inputs, mask, positions = _left_padded(runner, prompts, prefix)
    states = runner.prefix_states(prompts[0][:prefix]) if prefix else None
    cache = growing_cache(states, runner.cache_layers, len(prompts))
    last = torch.tensor([[inputs.shape[1] - 1]], device=inputs.device)
    alive = list(range(len(prompts)))
    while True:
        logits = runner.logits_at(
            last.expand(len(alive), 1),
            input_ids=inputs,
            attention_mask=mask,
            # a model without the argument counts positions by the mask, or not at all
            position_ids=positions if "position_ids" in runner.accepts else None,
            past_key_values=cache,
        )[:, 0]
        tokens, finished = choose(logits, alive)
        kept = [place for place, ended in enumerate(finished) if not ended]
        if not kept:
            return
        chosen, positions = torch.tensor(tokens, device=inputs.device), positions[:, -1:] + 1
        if len(alive) - len(kept) >= _DROP_SHARE * len(alive):
            select = torch.tensor(kept, device=inputs.device)
            cache.batch_select_indices(select)
            mask, positions, chosen = mask[select], positions[select], chosen[select]
            alive = [alive[place] for place in kept]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        inputs, last = chosen[:, None], torch.zeros_like(last)


def _left_padded(
    runner: ModelRunner, prompts: Sequence[Sequence[int]], prefix: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids (rows, width), mask (rows, prefix + width) and positions (rows, width)."""
    import torch

    width = max(map(len, prompts)) - prefix
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    mask = np.ones((len(prompts), prefix + width), dtype=np.int64)
    for index, row in enumerate(prompts):
        blank = width - (len(row) - prefix)
        ids[index, blank:] = row[prefix:]
        mask[index, prefix : prefix + blank] = 0
    positions = np.maximum(mask.cumsum(axis=1)[:, prefix:] - 1, 0)
    tensors = [torch.from_numpy(array).to(runner.device) for array in (ids, mask, positions)]
    return tensors[0], tensors[1], tensors[2]


def _decode_by_library(
    runner: ModelRunner, prompts: Sequence[Sequence[int]], choose: Choose
) -> None:
    """Generate rows of one length with the library's own ``generate`` and its own cache.

    So whatever an architecture carries from step to step is carried as it wants it. The
    tokens are chosen here: a processor of logits leaves the library no choice.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    inputs = torch.tensor([list(row) for row in prompts], device=runner.device)
    everyone, ended = list(range(len(prompts))), torch.zeros(len(prompts), dtype=torch.bool)

    def force(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, finished = choose(scores, everyone)
        ended.copy_(torch.tensor(finished))
        forced = torch.full_like(scores, -torch.inf)
        forced[torch.arange(len(tokens)), torch.tensor(tokens, device=scores.device)] = 0.0
        return forced

    def stop(ids: torch.Tensor, _: torch.Tensor, **__: object) -> torch.Tensor:
        return ended.all().expand(len(ids)).to(ids.device)

    model, own = runner.model, runner.model.generation_config
    settings = {"max_new_tokens": _NO_END, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    # what the model asks for beside (penalties, forced tokens) is no part of the question
    model.generation_config = GenerationConfig(use_cache=True)
    try:
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=GenerationConfig(use_cache=True, **settings),
            logits_processor=LogitsProcessorList([force]),
            stopping_criteria=StoppingCriteriaList([stop]),
        )
    finally:
        model.generation_config = own


def _decode_recomputing(
    runner: ModelRunner, prompt: Sequence[int], number: int, choose: Choose
) -> None:
    """Generate one row without a cache: the plain way."""
    row, ended = list(prompt), False
    while not ended:
        (token,), (ended,) = choose(runner.plain(row)[-1:].float(), [number])
        row.append(token)


def forced_logits(
    runner: ModelRunner,
    mode: str,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    prefix: int,
) -> list[torch.Tensor]:
    """Return each row's logits (steps, vocabulary) before the tokens of a given answer."""
    import torch

    found: list[list[torch.Tensor]] = [[] for _ in prompts]

    def choose(logits: torch.Tensor, alive: Sequence[int]) -> tuple[list[int], list[bool]]:
        for index, values in zip(alive, logits, strict=True):
            if len(found[index]) < len(answers[index]):
                found[index].append(values.float())
        said = [len(found[index]) for index in alive]
        tokens = [answers[i][n - 1] for i, n in zip(alive, said, strict=True)]
        return tokens, [n == len(answers[i]) for i, n in zip(alive, said, strict=True)]

    decode(runner, mode, prompts, prefix, choose)
    return [torch.stack(values) for values in found]
