"""Likelihoods: of the options of a choice, and of whole continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.inference.batching import Batch, Row

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.engine import Engine, Reader
    from selectit_dagster.inference.runner import ModelRunner

    Reduce = Callable[[Row, torch.Tensor], Any]


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
    wanted = list(tokens)
    found = _of_batch(engine, rows, batch, lambda _, logs: logs[0, wanted].tolist())
    return np.asarray(found, dtype=np.float64)


def token_batch(
    engine: Engine, rows: Sequence[Row], batch: Batch, tokens: Sequence[Sequence[int]]
) -> list[list[tuple[float, bool]]]:
    """Return, for each row's own candidate tokens, log-probability and whether it is greedy."""
    own = {rows[index].key: tokens[index] for index in batch.indices}

    def reduce(row: Row, logs: torch.Tensor) -> list[tuple[float, bool]]:
        best = int(logs[0].argmax())
        return [(float(logs[0, token]), token == best) for token in own[row.key]]

    return _of_batch(engine, rows, batch, reduce)


def continuation_batch(
    engine: Engine, rows: Sequence[Row], batch: Batch
) -> list[tuple[float, bool]]:
    """Return, per row, the log-likelihood of its continuation and whether it is the greedy one."""
    import torch

    def reduce(row: Row, logs: torch.Tensor) -> tuple[float, bool]:
        wanted = torch.tensor(row.ids[row.start :], device=logs.device)
        value = float(logs.gather(1, wanted[:, None]).cpu().double().sum())
        return value, bool((logs.argmax(dim=-1) == wanted).all())

    return _of_batch(engine, rows, batch, reduce)


def _of_batch(engine: Engine, rows: Sequence[Row], batch: Batch, reduce: Reduce) -> list[Any]:
    members = [rows[index] for index in batch.indices]
    return log_probabilities(engine.runner, members, reduce, batch.prefix)


def log_probabilities(
    runner: ModelRunner, rows: Sequence[Row], reduce: Reduce, prefix: int = 0
) -> list[Any]:
    """Return ``reduce`` of each row and its log-probabilities, (places, vocabulary) float32.

    The places are those that predict a row's continuation; of a row without one, the last.
    The first ``prefix`` tokens are the same in all rows.

    Raises
    ------
    UserError
        Naming the row that does not fit into memory even alone.
    """
    import torch

    # a continuation's last token predicts nothing that is asked, so it is not read
    spans = [(row.start - 1, max(row.start, len(row.ids) - 1)) for row in rows]
    longest = max(end - first for first, end in spans)
    ids = [row.ids[:end] for row, (_, end) in zip(rows, spans, strict=True)]
    # a shorter continuation repeats its last place
    places = [[min(first + k, end - 1) for k in range(longest)] for first, end in spans]

    def work(some: list[int]) -> list[Any]:
        def reduced(numbers: list[int], logits: torch.Tensor) -> list[Any]:
            logs = torch.log_softmax(logits, dim=-1)
            own = [(rows[some[n]], max(1, rows[some[n]].continuation)) for n in numbers]
            return [reduce(row, one[:n]) for (row, n), one in zip(own, logs, strict=True)]

        return runner.logits([ids[i] for i in some], [places[i] for i in some], prefix, reduced)

    names = [f"row {row.key!r}" for row in rows]
    return runner.each(names, [len(own) for own in ids], work, prefix)
