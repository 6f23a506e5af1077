"""From records to token rows: bulk tokenisation, shared prefixes, and what does not fit.

Whole texts are tokenised, never their parts, so a row is exactly what the tokenizer makes of
the text whatever merges across the parts' borders. The prefix that rows share is then found
in the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from selectit_dagster.inference.backends.protocol import Tokens
from selectit_dagster.rating.prompts import RatingPrompt, rating_text
from selectit_dagster.rating.rating_tokens import Encoder
from selectit_dagster.rating.score_store import FAILED, OK, TOO_LONG

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from selectit_dagster.rating.scoring import ScoringRequest

# instructions that begin as differently as texts do, to find what a prompt's rows share
_PROBES = ("A", "a", "1", " ", "\n", "(", "Ж", "问")
_TEXTS_AT_ONCE = 512
_CUTS = 8


@dataclass(frozen=True)
class TokenRow:
    """One record under one prompt.

    ``tokens`` is None when the row cannot be rated; ``reason`` then says why, and ``status``
    which of the stored statuses that is. ``reason`` also says how a response was cut.
    """

    record: int
    prompt: int
    tokens: Tokens | None
    reason: str | None = None
    status: int = OK


@dataclass(frozen=True)
class RowMaker:
    """Makes the token rows of records under rating prompts.

    ``max_length`` is in tokens, None for no limit. ``truncate`` cuts responses that do not
    fit, from their end, in the middle of the text: never the question after them.
    ``vocabulary`` is the size of the model's, None where it is not known.
    """

    encoder: Encoder
    prompts: tuple[RatingPrompt, ...]
    max_length: int | None = None
    truncate: bool = False
    vocabulary: int | None = None

    def parts(self, prompt: int, instruction: str, response: str) -> tuple[str, str, str]:
        """Return the text before the response, the response, and the text after it."""
        text = rating_text(self.prompts[prompt], instruction, response)
        before, after = self.encoder.wrap(text.before, text.after)
        return before, text.response, after

    def contexts(self) -> list[str]:
        """Return one short text per prompt, to find the rating tokens in."""
        return ["".join(self.parts(k, "Say hello.", "Hello!")) for k in range(len(self.prompts))]

    def shared_prefixes(self) -> tuple[Tokens, ...]:
        """Return, per prompt, the tokens with which its rows begin."""
        prefixes = []
        for prompt in range(len(self.prompts)):
            texts = ["".join(self.parts(prompt, probe, "")) for probe in _PROBES]
            rows = self.encoder.encode(texts)
            same = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
            prefixes.append(np.array([column[0] for column in same], dtype=np.int32))
        return tuple(prefixes)

    def make(
        self, records: Sequence[tuple[str, str]], wanted: Sequence[tuple[int, int]]
    ) -> list[TokenRow]:
        """Return the rows ``wanted`` as (record, prompt) of ``records`` (instruction, response)."""
        rows: list[TokenRow] = []
        for start in range(0, len(wanted), _TEXTS_AT_ONCE):
            some = wanted[start : start + _TEXTS_AT_ONCE]
            texts = ["".join(self.parts(k, *records[i])) for i, k in some]
            for (i, k), tokens in zip(some, self.encoder.encode(texts), strict=True):
                rows.append(self._fitted(i, k, records[i], np.array(tokens, dtype=np.int32)))
        return rows

    def _fitted(self, i: int, k: int, record: tuple[str, str], tokens: Tokens) -> TokenRow:
        if self.vocabulary is not None and tokens.max(initial=0) >= self.vocabulary:
            reason = f"token {tokens.max()} is not in the model's vocabulary of {self.vocabulary}"
            return TokenRow(i, k, None, reason, FAILED)
        if self.max_length is None or len(tokens) <= self.max_length:
            return TokenRow(i, k, tokens)
        reason = f"{len(tokens)} tokens, {self.max_length} fit"
        if not self.truncate:
            return TokenRow(i, k, None, reason, TOO_LONG)
        cut = self._cut(k, record)
        if cut is None:
            reason = f"{reason}, and not even without its response"
            return TokenRow(i, k, None, reason, TOO_LONG)
        shorter, characters = cut
        note = f"response cut from {len(record[1])} to {characters} characters"
        return TokenRow(i, k, shorter, note)

    def _cut(self, prompt: int, record: tuple[str, str]) -> tuple[Tokens, int] | None:
        """Return the row with as much of the response's beginning as fits, and how much."""
        limit = self.max_length or 0
        before, response, after = self.parts(prompt, *record)
        size = len(self.encoder.encode([before + after])[0])
        if size > limit:
            return None
        kept = self._characters(before, response, after, limit - size)
        tokens = self.encoder.encode([before + response[:kept] + after])[0]
        # tokens merge across the cut, so the estimate can be off by a few either way
        while len(tokens) > limit and kept > 0:
            kept = max(0, kept - max(_CUTS, len(tokens) - limit))
            tokens = self.encoder.encode([before + response[:kept] + after])[0]
        return np.array(tokens, dtype=np.int32), kept

    def _characters(self, before: str, response: str, after: str, room: int) -> int:
        """Estimate how many of the response's characters ``room`` tokens hold."""
        offsets = self.encoder.offsets(before + response + after)
        if offsets is None:
            rows = len(self.encoder.encode([before + response + after])[0])
            return len(response) * room // max(1, rows)
        begin, end = len(before), len(before) + len(response)
        ends = [stop for start, stop in offsets if stop > begin and start < end]
        return max(0, min(end, ends[room - 1]) - begin) if 0 < room <= len(ends) else 0


def row_maker(request: ScoringRequest) -> tuple[RowMaker, list[str]]:
    """Return what makes the request's token rows, and warnings; loads no weights."""
    from selectit_dagster.inference.model_loading import (
        load_config,
        load_tokenizer,
        vocabulary_size,
    )

    rating = request.rating
    encoder = Encoder(load_tokenizer(request.model), chat_template=rating.chat_template)
    config = load_config(request.model)
    limit, warnings = max_length(rating.max_length, config, encoder)
    if request.model.server is not None:
        from selectit_dagster.inference.backends.server import longest_prompt

        there = longest_prompt(request.model)
        limit = min(filter(None, (limit, there)), default=None)
    truncate = rating.too_long == "truncate-response"
    vocabulary = vocabulary_size(config)
    prompts = request.prompts()
    return RowMaker(encoder, prompts, limit, truncate, vocabulary), warnings


def max_length(
    asked: int | None, config: PreTrainedConfig, encoder: Encoder
) -> tuple[int | None, list[str]]:
    """Return the longest row in tokens, and warnings.

    That is the model's context, or less where less is asked for; None where nothing says.
    """
    from selectit_dagster.inference.model_loading import context_length

    context = context_length(config, encoder.tokenizer)
    if asked is None or context is None:
        return asked or context, []
    if asked > context:
        return context, [f"max_length {asked} is beyond the model's context: {context} is used"]
    return asked, []
