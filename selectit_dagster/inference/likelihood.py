"""Likelihoods: of the options of a choice, and of whole continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    wanted = list(tokens)

    def reduce(_: Row, logs: torch.Tensor) -> list[float]:
        return list(logs[0, wanted].tolist())

    return np.asarray(_each(engine, rows, batch, reduce), dtype=np.float64)


def token_batch(
    engine: Engine, rows: Sequence[Row], batch: Batch, tokens: Sequence[Sequence[int]]
) -> list[list[tuple[float, bool]]]:
    """Return, for each row's own candidate tokens, log-probability and whether it is greedy."""
    own = {rows[index].key: tokens[index] for index in batch.indices}

    def reduce(row: Row, logs: torch.Tensor) -> list[tuple[float, bool]]:
        best = int(logs[0].argmax())
        return [(float(logs[0, token]), token == best) for token in own[row.key]]

    return list(_each(engine, rows, batch, reduce))


def continuation_batch(
    engine: Engine, rows: Sequence[Row], batch: Batch
) -> list[tuple[float, bool]]:
    """Return, per row, the log-likelihood of its continuation and whether it is the greedy one."""
    import torch

    def reduce(row: Row, logs: torch.Tensor) -> tuple[float, bool]:
        logs = logs[: row.continuation]
        wanted = torch.tensor(row.ids[-row.continuation :], device=logs.device)
        value = float(logs.gather(1, wanted[:, None]).cpu().double().sum())
        return value, bool((logs.argmax(dim=-1) == wanted).all())

    return list(_each(engine, rows, batch, reduce))


def _each(
    engine: Engine, rows: Sequence[Row], batch: Batch, reduce: Callable[[Row, torch.Tensor], Any]
) -> list[Any]:
    """Return ``reduce`` of each row and its log-probabilities (places, vocabulary).

    The places are those after which a continuation's tokens come; of a row without one, the
    last. A continuation shorter than the longest repeats its last place.

    Raises
    ------
    UserError
        Naming the row that does not fit into memory even alone.
    """
    import torch

    members = [rows[i] for i in batch.indices]
    # a continuation's last token is not read
    ids = [row.ids[:-1] if row.continuation else row.ids for row in members]
    longest = max(1, *(row.continuation for row in members))
    places = [
        [len(own) - max(row.continuation, 1) + min(k, max(row.continuation, 1) - 1)
         for k in range(longest)]
        for own, row in zip(ids, members, strict=True)
    ]  # fmt: skip

    def work(some: list[int]) -> list[Any]:
        def reduced(numbers: list[int], logits: torch.Tensor) -> list[Any]:
            logs = torch.log_softmax(logits, dim=-1)
            return [reduce(members[some[n]], one) for n, one in zip(numbers, logs, strict=True)]

        return engine.runner.logits(
            [ids[i] for i in some], [places[i] for i in some], batch.prefix, reduced
        )

    names = [f"row {row.key!r}" for row in members]
    return engine.runner.each(names, [len(own) for own in ids], work, batch.prefix)
