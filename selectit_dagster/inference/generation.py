"""Text generation: greedy or sampled, batched, with the shared prefix cached.

The loop is our own because three things are not to be had otherwise: a stopping rule that
sees the generated part alone, finished rows that leave their batch, and draws that belong to
a row (its key and the seed) and not to the batch it happens to be in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.batching import Batch, Row
from selectit_dagster.inference.decoding_loops import decode
from selectit_dagster.inference.execution_modes import PREFIX
from selectit_dagster.inference.prompt_templates import encode_prompt

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.engine import Engine


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated.

    Parameters
    ----------
    max_new_tokens:
        Longest answer in tokens.
    stop:
        Texts that end the answer; they and what follows are not part of it.
    temperature, top_p:
        0 is greedy; otherwise nucleus sampling at this temperature.
    samples:
        Answers per question.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1


@dataclass(frozen=True)
class Generated:
    """One answer: its text, its token ids, and why it ended (eos, stop, length)."""

    text: str
    ids: tuple[int, ...]
    finish: str


class _Rows:
    """The state of a batch under way: which rows are alive and what they have said."""

    def __init__(self, engine: Engine, rows: Sequence[Row], decoding: Decoding, seed: int) -> None:
        self.engine = engine
        self.rows = rows
        self.decoding = decoding
        self.new: list[list[int]] = [[] for _ in rows]
        self.finish = ["" for _ in rows]
        self.limits = [
            max(1, min(decoding.max_new_tokens, engine.context - len(row.ids))) for row in rows
        ]
        self.ends = end_tokens(engine)
        # an end text of n characters is at most 4 n bytes, hence at most 4 n tokens, long
        self.window = max((4 * len(text) + 2 for text in decoding.stop), default=0)
        self.draws = _draws(rows, decoding, seed)

    def say(self, index: int, token: int) -> None:
        """Add ``token`` to row ``index`` and decide whether the row is finished.

        A finished row that has not left its batch yet goes on being computed; what comes
        out of it is not said.
        """
        if self.finish[index]:
            return
        if token in self.ends:
            self.finish[index] = "eos"
            return
        said = self.new[index]
        said.append(token)
        if self.decoding.stop:
            recent = self.engine.decode_new((), said[-self.window :])
            if any(text in recent for text in self.decoding.stop):
                self.finish[index] = "stop"
                return
        if len(said) >= self.limits[index]:
            self.finish[index] = "length"

    def results(self) -> list[Generated]:
        """Return the answers, cut before the first end text."""
        out = []
        for row, said, finish in zip(self.rows, self.new, self.finish, strict=True):
            text = cut_at(self.engine.decode_new(row.ids, said), self.decoding.stop)
            out.append(Generated(text, tuple(said), finish))
        return out


def answer(
    engine: Engine, prompt: str, decoding: Decoding, *, template: str = "custom", seed: int = 1
) -> str:
    """Return the answer to one rendered prompt, in the tokens of its template.

    Raises
    ------
    UserError
        When the prompt leaves no room for an answer.
    """
    row = Row(prompt, tuple(encode_prompt(engine.tokenizer, prompt, template)))
    if len(row.ids) >= engine.context:
        raise UserError(
            f"the prompt has {len(row.ids)} tokens, and the model takes {engine.context} together "
            "with the answer",
            hint="shorten it",
        )
    batch = Batch((0,), 0)
    return generate_batch(engine, [row], batch, decoding, seed=seed)[0].text.strip()


def generate_batch(
    engine: Engine, rows: Sequence[Row], batch: Batch, decoding: Decoding, *, seed: int = 0
) -> list[Generated]:
    """Generate the answers of one batch, in the order of ``batch.indices``.

    Raises
    ------
    UserError
        Naming the row that does not fit into memory even alone.
    """
    members = [rows[i] for i in batch.indices]
    lengths = [len(row.ids) for row in members]

    def work(some: list[int]) -> list[Generated]:
        state = _Rows(engine, [members[i] for i in some], decoding, seed)
        answers = [row.ids for row in state.rows]
        for mode, alike in engine.runner.grouped(answers, batch.prefix, state.limits):
            prefix = batch.prefix if mode == PREFIX else 0
            decode(engine.runner, mode, [answers[i] for i in alike], prefix, _Chooser(state, alike))
        return state.results()

    names = [f"row {row.key!r}" for row in members]
    return list(engine.runner.each(names, lengths, work, batch.prefix))


class _Chooser:
    """Chooses the next tokens of some rows of a batch, and says which of them are finished."""

    def __init__(self, state: _Rows, rows: Sequence[int]) -> None:
        self.state, self.rows = state, rows

    def __call__(self, logits: torch.Tensor, alive: Sequence[int]) -> tuple[list[int], list[bool]]:
        members = [self.rows[index] for index in alive]
        tokens = _choose(logits, self.state, members)
        for index, token in zip(members, tokens, strict=True):
            self.state.say(index, token)
        return tokens, [bool(self.state.finish[index]) for index in members]


def _choose(logits: torch.Tensor, state: _Rows, alive: Sequence[int]) -> list[int]:
    """Return the next token of each living row from its logits (rows, vocabulary)."""
    if state.draws is None:
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    step = [len(state.new[index]) for index in alive]
    # a row that is finished but not dropped yet has no draw left; its token is thrown away
    uniform = [state.draws[i, min(s, state.draws.shape[1] - 1)] for i, s in zip(alive, step)]  # noqa: B905
    return sample(logits, np.asarray(uniform), state.decoding)


def sample(logits: torch.Tensor, uniform: np.ndarray, decoding: Decoding) -> list[int]:
    """Draw one token per row by nucleus sampling, from a uniform number per row.

    The nucleus is the smallest set of most probable tokens whose probabilities reach
    ``top_p`` (Holtzman et al. 2020); the token is the inverse of its cumulated distribution.
    """
    import torch

    # MPS has no float64
    logits = logits.cpu() if logits.device.type == "mps" else logits
    scaled = torch.log_softmax(logits.double() / decoding.temperature, dim=-1)
    ordered, tokens = scaled.exp().sort(dim=-1, descending=True, stable=True)
    reached = ordered.cumsum(dim=-1)
    ordered[reached - ordered >= decoding.top_p] = 0.0
    reached = ordered.cumsum(dim=-1)
    target = torch.from_numpy(uniform).to(logits.device)[:, None] * reached[:, -1:]
    place = (reached <= target).sum(dim=-1, keepdim=True)
    place = place.clamp(max=logits.shape[-1] - 1)
    return [int(token) for token in tokens.gather(1, place)[:, 0].tolist()]


def _draws(rows: Sequence[Row], decoding: Decoding, seed: int) -> np.ndarray | None:
    """Return one uniform number per row and step, (rows, max_new_tokens); None when greedy."""
    if decoding.temperature <= 0:
        return None
    streams = []
    for row in rows:
        digest = hashlib.sha256(f"{seed}\x00{row.key}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
        streams.append(generator.random(decoding.max_new_tokens))
    return np.stack(streams)


def end_tokens(engine: Engine) -> frozenset[int]:
    """Return the token ids that end an answer: the model's and the tokenizer's."""
    config = getattr(engine.model, "generation_config", None)
    found = {engine.tokenizer.eos_token_id}
    named = getattr(config, "eos_token_id", None)
    found.update(named if isinstance(named, list | tuple) else [named])
    return frozenset(token for token in found if token is not None)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return ``text`` up to the first of the ``stop`` texts."""
    places = [place for end in stop if (place := text.find(end)) >= 0]
    return text[: min(places)] if places else text
