"""A judge model that prefers one of two answers to an instruction.

It is a local model or one behind a vLLM or SGLang server: it reads the instruction and both
answers and the likelihoods of "A" and "B" decide, in both orders, so that a liking for the
first place cancels.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.errors import UserError
from selectit_dagster.evaluation.answer_journal import Keep, kept_nowhere
from selectit_dagster.experiment import ServedModel
from selectit_dagster.inference.backends.protocol import Backend, TokenBatch, local_backend
from selectit_dagster.inference.batching import Batch, Row, plan_batches

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Reader
    from selectit_dagster.inference.likelihood import Options

_PROMPT = (
    "Two assistants answered the same instruction. Say which answer is better.\n\nInstruction:\n",
    "\n\nAnswer A:\n",
    "\n\nAnswer B:\n",
    "\n\nThe better answer is:",
)
_LABELS = ("A", "B")
# batches that are asked together and kept together by an evaluation that may be killed
_KEPT_BATCHES = 8


@dataclass(frozen=True)
class Pair:
    """An instruction, the answer that is judged and the one it is compared with."""

    instruction: str
    output: str
    reference: str


def render(pair: Pair, *, swapped: bool) -> str:
    """Return the judge's prompt; the judged output is answer A unless ``swapped``."""
    answers = (pair.reference, pair.output) if swapped else (pair.output, pair.reference)
    opening, before_a, before_b, end = _PROMPT
    return "".join((opening, pair.instruction, before_a, answers[0], before_b, answers[1], end))


@dataclass(frozen=True)
class Judge:
    """A model that reads a pair and says how likely the first answer is the better one.

    ``options`` are the tokens of A and B; ``longest`` is the longest prompt in tokens.
    """

    backend: Backend
    reader: Reader
    options: Options
    longest: int

    def prefer(self, pairs: Sequence[Pair], keep: Keep = kept_nowhere) -> list[float | None]:
        """Return, per pair, the preference for ``output`` in [0, 1], the mean over both orders.

        None is a pair that cannot be judged: it does not fit into the judge's context, or the
        judge failed on it. ``keep`` keeps answers, so that a resumed evaluation asks the rest.
        """
        rows = [self._row(pair, swapped) for swapped in (False, True) for pair in pairs]
        fitting = [row for row in rows if len(row.ids) <= self.longest]
        liked = self._liked(fitting, keep)
        first, second = (
            [liked.get(row.key) for row in part]
            for part in (rows[: len(pairs)], rows[len(pairs) :])
        )
        return [
            None if one is None or two is None else (one + (1.0 - two)) / 2.0
            for one, two in zip(first, second, strict=True)
        ]

    def _row(self, pair: Pair, swapped: bool) -> Row:
        ids = (*self.reader.encode(render(pair, swapped=swapped)), *self.options.lead)
        return Row(sha256_json(["judge", swapped, *astuple(pair)]), ids)

    def _liked(self, rows: Sequence[Row], keep: Keep) -> dict[str, float | None]:
        """Return the probability of answer A of each row, by its key."""
        batches = plan_batches(rows, self.backend.facts.batch_tokens) if rows else []
        liked: dict[str, float | None] = {}
        with ThreadPoolExecutor(self.backend.facts.workers) as pool:
            for start in range(0, len(batches), _KEPT_BATCHES):
                some = batches[start : start + _KEPT_BATCHES]
                keys = [rows[i].key for batch in some for i in batch.indices]

                def ask(some: Sequence[Batch] = some) -> list[float | None]:
                    asked = pool.map(partial(self._ask, rows), some)
                    return [value for values in asked for value in values]

                liked.update(zip(keys, keep(keys, ask), strict=True))
        return liked

    def _ask(self, rows: Sequence[Row], batch: Batch) -> list[float | None]:
        """Return the probability of A after each of a batch's rows, None where it failed."""
        ids = [np.array(rows[i].ids, dtype=np.int32) for i in batch.indices]
        cut = batch.prefix
        found = self.backend.rate(TokenBatch(ids[0][:cut], tuple(row[cut:] for row in ids)))
        a, b = found.log_probabilities.astype(np.float64).T
        with np.errstate(over="ignore"):
            likely = 1.0 / (1.0 + np.exp(b - a))
        return [None if np.isnan(value) else float(value) for value in likely]


@contextlib.contextmanager
def open_judge(model: ServedModel) -> Iterator[Judge]:
    """Yield the judge; a server that the model's ``launch`` describes runs meanwhile.

    Raises
    ------
    UserError
        When the model cannot be loaded or reached, or its tokenizer lacks the letters.
    """
    reader, options = judge_letters(model)
    if model.server is None:
        from selectit_dagster.inference.model_loading import context_length, load_model

        loaded = load_model(model)
        longest = context_length(loaded.model.config, loaded.tokenizer)
        yield Judge(local_backend(loaded, options.tokens), reader, options, longest or sys.maxsize)
        return
    from selectit_dagster.artefacts.user_cache import cache_folder
    from selectit_dagster.inference.backends.server import ServerBackend, reachable

    with reachable(model, cache_folder() / "judge-server.log") as there:
        backend = ServerBackend(there, options.tokens)
        yield Judge(backend, reader, options, backend.engine.longest or sys.maxsize)


def judge_letters(model: ServedModel) -> tuple[Reader, Options]:
    """Return the judge's tokenizer and its tokens of A and B; no model is loaded.

    Raises
    ------
    UserError
        When the tokenizer has no single token for each of them.
    """
    from selectit_dagster.inference.engine import Reader
    from selectit_dagster.inference.likelihood import find_options
    from selectit_dagster.inference.model_loading import load_tokenizer

    reader = Reader(load_tokenizer(model))
    options = find_options(reader, render(Pair("Say yes.", "yes", "no"), swapped=False), _LABELS)
    if not options.single:
        raise UserError(
            f"the tokenizer of the judge {reader.tokenizer.name_or_path} has no token of its own "
            "for each of the letters A and B",
            hint="use another judge model",
        )
    return reader, options
