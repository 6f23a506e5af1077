"""Judges that prefer one of two answers to an instruction.

A judge is anything with :class:`Judge`'s one method. Those here are a local model and a model
behind a vLLM or SGLang server: it reads the instruction and both answers and the likelihoods of
"A" and "B" decide, in both orders, so that a liking for the first place cancels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation.tasks.task import Keep, kept_nowhere
from selectit_dagster.experiment import ServedModel
from selectit_dagster.inference.backends.protocol import TokenBatch, Tokens
from selectit_dagster.inference.prompt_rows import Batch, Row

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine, Reader
    from selectit_dagster.inference.likelihood import Options

_PROMPT = (
    "Two assistants answered the same instruction. Say which answer is better.\n\n"
    "Instruction:\n{instruction}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
    "The better answer is:"
)
_LABELS = ("A", "B")
# pairs that are asked together and kept together by an evaluation that may be killed
_KEPT_PAIRS = 64


@dataclass(frozen=True)
class Pair:
    """An instruction, the answer that is judged and the one it is compared with."""

    instruction: str
    output: str
    reference: str


class Judge(Protocol):
    """What AlpacaEval asks of a judge."""

    def prefer(self, pairs: Sequence[Pair], keep: Keep) -> list[float | None]:
        """Return, per pair, the preference for ``output`` in [0, 1]; None: cannot be judged.

        ``keep(key, make)`` makes a JSON value once, also over a killed and resumed evaluation.
        """
        ...  # pragma: no cover - protocol


class _BothOrders:
    """A judge that is asked in both orders, by whatever runs it."""

    def prefer(self, pairs: Sequence[Pair], keep: Keep = kept_nowhere) -> list[float | None]:
        """Return the mean probability of the output over both orders.

        A pair that does not fit into the judge's context is not judged.

        Raises
        ------
        UserError
            When the judge's tokenizer has no single tokens for A and B here.
        """
        first = self._likes_a(pairs, keep, swapped=False)
        second = self._likes_a(pairs, keep, swapped=True)
        return [
            None if one is None or two is None else (one + (1.0 - two)) / 2.0
            for one, two in zip(first, second, strict=True)
        ]

    def _likes_a(self, pairs: Sequence[Pair], keep: Keep, *, swapped: bool) -> list[float | None]:
        """Return the probability of answer A in one order, None for pairs that do not fit."""
        raise NotImplementedError


class LocalJudge(_BothOrders):
    """A local model as the judge.

    Parameters
    ----------
    engine:
        The judging model.
    batch_tokens:
        Token positions per batch.
    """

    def __init__(self, engine: Engine, batch_tokens: int = 8192) -> None:
        self.engine = engine
        self.batch_tokens = batch_tokens

    def _likes_a(self, pairs: Sequence[Pair], keep: Keep, *, swapped: bool) -> list[float | None]:
        """Return the probability of answer A in one order, None for pairs that do not fit."""
        from selectit_dagster.inference.likelihood import option_batch

        texts = [render(pair, swapped=swapped) for pair in pairs]
        options = letters(self.engine, texts[0])
        ids = [tuple(self.engine.encode(text)) + options.lead for text in texts]
        fitting = [i for i, row in enumerate(ids) if len(row) <= self.engine.context]
        rows = [Row(str(i), ids[i]) for i in fitting]
        result: list[float | None] = [None] * len(pairs)
        for number, batch in enumerate(self.engine.plan(rows, self.batch_tokens)):

            def ask(batch: Batch = batch) -> list[float]:
                logs = option_batch(self.engine, rows, batch, options.tokens)
                return [float(1.0 / (1.0 + np.exp(b - a))) for a, b in logs]

            liked = keep(f"judge/{int(swapped)}/{number}", ask)
            for place, value in zip(batch.indices, liked, strict=True):
                result[fitting[place]] = value
        return result


class ServerJudge(_BothOrders):
    """A model behind a server as the judge: the log-probabilities of the two verdict tokens.

    Parameters
    ----------
    model:
        The judge; a server that ``launch`` describes runs while pairs are judged.
    """

    def __init__(self, model: ServedModel) -> None:
        from selectit_dagster.inference.engine import Reader
        from selectit_dagster.inference.model_loading import load_tokenizer

        self.model = model
        self.reader = Reader(load_tokenizer(model))

    def prefer(self, pairs: Sequence[Pair], keep: Keep = kept_nowhere) -> list[float | None]:
        """Return the mean probability of the output over both orders; see ``LocalJudge``."""
        from selectit_dagster.inference.backends.server import ServerBackend, reachable
        from selectit_dagster.inference.model_identity import cache_folder

        options = letters(self.reader, render(Pair("Say yes.", "yes", "no"), swapped=False))
        with reachable(self.model, cache_folder() / "judge-server.log") as there:
            self.backend = ServerBackend(there, options.tokens)
            return super().prefer(pairs, keep)

    def _likes_a(self, pairs: Sequence[Pair], keep: Keep, *, swapped: bool) -> list[float | None]:
        lead = letters(self.reader, render(pairs[0], swapped=swapped)).lead
        longest = self.backend.engine.longest or sys.maxsize
        rows = [
            np.array([*self.reader.encode(render(pair, swapped=swapped)), *lead], dtype=np.int32)
            for pair in pairs
        ]
        fitting = [i for i, row in enumerate(rows) if len(row) <= longest]
        result: list[float | None] = [None] * len(pairs)
        with ThreadPoolExecutor(self.backend.facts.workers) as pool:
            for start in range(0, len(fitting), _KEPT_PAIRS):
                some = fitting[start : start + _KEPT_PAIRS]

                def ask(some: list[int] = some) -> list[float | None]:
                    return list(pool.map(self._ask, [rows[i] for i in some]))

                liked = keep(f"judge/{int(swapped)}/{start}", ask)
                for i, value in zip(some, liked, strict=True):
                    result[i] = value
        return result

    def _ask(self, row: Tokens) -> float | None:
        """Return the probability of A after one prompt, None where the server has none."""
        found = self.backend.rate(TokenBatch(row[:1], (row[1:],)))
        a, b = found.log_probabilities[0].astype(np.float64)
        value = float(1.0 / (1.0 + np.exp(b - a)))
        return None if found.failures or np.isnan(value) else value


def letters(reader: Reader, text: str) -> Options:
    """Return the tokens of A and B after ``text``, a rendered pair.

    Raises
    ------
    UserError
        When the judge's tokenizer has no single token for each of them.
    """
    from selectit_dagster.inference.likelihood import find_options

    options = find_options(reader, text, _LABELS)
    if not options.single:
        raise UserError(
            f"the tokenizer of the judge {reader.tokenizer.name_or_path} has no token of its own "
            "for each of the letters A and B",
            hint="use another judge model",
        )
    return options


def render(pair: Pair, *, swapped: bool) -> str:
    """Return the judge's prompt; the judged output is answer A unless ``swapped``."""
    first, second = (pair.output, pair.reference)
    if swapped:
        first, second = second, first
    # plain replacement of one field at a time would look into the answers
    head, tail = _PROMPT.split("{instruction}")
    middle, rest = tail.split("{first}")
    between, end = rest.split("{second}")
    return "".join((head, pair.instruction, middle, first, between, second, end))
