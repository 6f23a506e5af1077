"""Likelihoods: of the options of a choice, and of whole continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selectit_dagster.inference.prompt_rows import Batch, Row

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.engine import Engine, Reader


@dataclass(frozen=True)
class Options:
    """The options of a multiple-choice question as this tokenizer writes them.

    Parameters
    ----------
    labels:
        The options' names.
    lead:
        Token ids between the question's and the option's own (a blank's piece, mostly none).
    tokens:
        One token per option when ``single``.
    single:
        Whether every option is the same lead and one token of its own, so that the
        next-token distribution at one position decides.
    """

    labels: tuple[str, ...]
    lead: tuple[int, ...]
    tokens: tuple[int, ...]
    single: bool


def find_options(reader: Reader, context: str, labels: Sequence[str], blank: str = " ") -> Options:
    """Find, after ``context``, the tokens that the options begin with.

    The tokens are taken from the tokenised whole, since a tokenizer may write ``A`` after
    ``Answer:`` otherwise than alone.
    """
    before = reader.encode(context)
    after = [reader.encode(context + blank + label) for label in labels]
    tails = [ids[len(before) :] for ids in after]
    clean = all(ids[: len(before)] == before and tail for ids, tail in zip(after, tails))  # noqa: B905
    leads = {tuple(tail[:-1]) for tail in tails}
    tokens = tuple(tail[-1] for tail in tails if tail)
    single = (
        clean
        and len(leads) == 1
        and len(set(tokens)) == len(labels)
        and all(
            reader.tokenizer.decode([token]).strip() == label
            for token, label in zip(tokens, labels, strict=True)
        )
    )
    if not single:
        return Options(tuple(labels), (), (), False)
    return Options(tuple(labels), leads.pop(), tokens, True)


def option_batch(
    engine: Engine, rows: Sequence[Row], batch: Batch, tokens: Sequence[int]
) -> np.ndarray:
    """Return log-probabilities (rows, options) of the option tokens after each row."""
    import torch

    with torch.inference_mode():
        logs = torch.log_softmax(last_logits(engine, rows, batch), dim=-1)[:, list(tokens)]
    return np.asarray(logs.cpu().numpy(), dtype=np.float64)


def token_batch(
    engine: Engine, rows: Sequence[Row], batch: Batch, tokens: Sequence[Sequence[int]]
) -> list[list[tuple[float, bool]]]:
    """Return, for each row's own candidate tokens, log-probability and whether it is greedy."""
    import torch

    with torch.inference_mode():
        logits = last_logits(engine, rows, batch)
        best = logits.argmax(dim=-1).tolist()
        logs = torch.log_softmax(logits, dim=-1)
        return [
            [(float(logs[place, token]), token == best[place]) for token in tokens[index]]
            for place, index in enumerate(batch.indices)
        ]


def last_logits(engine: Engine, rows: Sequence[Row], batch: Batch) -> torch.Tensor:
    """Return float32 logits (rows, vocabulary) of the token that follows each row.

    Rows are padded on the right: in a causal model what follows a position does not reach
    it, so no mask is needed; only the last real positions go through the output layer.
    """
    members = [rows[i] for i in batch.indices]
    places = [[len(row.ids) - batch.prefix - 1] for row in members]
    inputs = _right_padded(engine, [row.ids[batch.prefix :] for row in members])
    return _logits_at(engine, members, batch, inputs, places)[:, 0].float()


def continuation_batch(
    engine: Engine, rows: Sequence[Row], batch: Batch
) -> list[tuple[float, bool]]:
    """Return, per row, the log-likelihood of its continuation and whether it is the greedy one."""
    import torch

    members = [rows[i] for i in batch.indices]
    inputs = _right_padded(engine, [row.ids[batch.prefix : -1] for row in members])
    longest = max(row.continuation for row in members)
    # a shorter continuation repeats its last place, which is not looked at
    places = [
        [
            len(row.ids) - batch.prefix - 1 - row.continuation + min(k, row.continuation - 1)
            for k in range(longest)
        ]
        for row in members
    ]
    results: list[tuple[float, bool]] = []
    with torch.inference_mode():
        logits = _logits_at(engine, members, batch, inputs, places)
        for row, whole in zip(members, logits, strict=True):
            own = whole[: row.continuation].float()
            wanted = torch.tensor(row.ids[-row.continuation :], device=engine.device)
            picked = torch.log_softmax(own, dim=-1).gather(1, wanted[:, None])
            greedy = bool((own.argmax(dim=-1) == wanted).all())
            results.append((float(picked.double().sum()), greedy))
    return results


def _logits_at(
    engine: Engine,
    members: Sequence[Row],
    batch: Batch,
    inputs: torch.Tensor,
    places: Sequence[Sequence[int]],
) -> torch.Tensor:
    """Return logits (rows, places, vocabulary) at each row's own places after the prefix."""
    import torch

    cache = engine.prefix_cache(members[0].ids[: batch.prefix], len(members))
    at = torch.tensor(places, device=engine.device)
    return engine.logits_at(inputs, at, past_key_values=cache, use_cache=cache is not None)


def _right_padded(engine: Engine, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    import torch

    width = max(len(row) for row in ids)
    array = np.full((len(ids), width), engine.tokenizer.pad_token_id or 0, dtype=np.int64)
    for index, row in enumerate(ids):
        array[index, : len(row)] = row
    return torch.from_numpy(array).to(engine.device)
