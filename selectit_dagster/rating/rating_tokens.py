"""Rating tokens: the one token with which a text goes on as "1", "2", ... "R".

They are found in context. Encoding "1" alone gives something else in many vocabularies
(SentencePiece puts a space piece first, the same for every rating), and ids that are right
for one vocabulary are unrelated tokens in the next, so nothing here is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selectit_dagster.errors import UserError
from selectit_dagster.inference.prompt_templates import render_chat
from selectit_dagster.inference.tokenization import as_content, encode_all
from selectit_dagster.rating.prompts import QUESTION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """Turns texts into token rows that end where the next token would be written.

    Special tokens at the beginning are the tokenizer's own choice (a BOS or none); those
    that some tokenizers put at the end (an EOS) are taken off, because the rating follows.

    Parameters
    ----------
    tokenizer:
        Any tokenizer of transformers.
    chat_template:
        Wrap each text as the user's turn in the model's chat template, up to where the
        assistant's answer begins.

    Raises
    ------
    UserError
        When a chat template is asked for and the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: bool = False) -> None:
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template",
                hint="set rating.chat_template: false, or use a model that was tuned to chat",
            )
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.trailing = 0 if chat_template else _trailing_specials(tokenizer)
        # whether a question's last tokens are others when a rating follows: then those count,
        # since they are what the model saw in training
        self.continued = False
        self.head = self.tail = ""
        self.head, self.tail = self.wrap("", "")
        before, after = self.wrap("", QUESTION)
        question, one, two = self.encode_whole([before + after + end for end in ("", "1", "2")])
        self.continued = one[:-1] == two[:-1] != question

    def wrap(self, before: str, after: str) -> tuple[str, str]:
        """Return what stands before and after a text's cuttable middle, template included.

        Raises
        ------
        UserError
            When the chat template refuses a single question, or does not show it as it is.
        """
        if not self.chat_template:
            return before, after
        # a mark that no template or record holds shows where the user's turn lands, and the
        # blanks around it whether the template trims it
        mark = "\ue000\ue001\ue000"
        turn = [{"role": "user", "content": f" {mark}\n"}]
        text = render_chat(
            self.tokenizer, turn, answering=True, instead="set rating.chat_template: false"
        )
        head, found, tail = text.partition(mark)
        if not found:
            raise UserError(
                f"the chat template of {self.tokenizer.name_or_path} changes the user's text",
                hint="set rating.chat_template: false",
            )
        if head.endswith(" ") and tail.startswith("\n"):
            return head[:-1] + before, after + tail[1:]
        return head + before.lstrip(), after.rstrip() + tail

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return one row of token ids per text, up to where the rating token comes."""
        if not self.continued:
            return self.encode_whole(texts)
        return [row[:-1] for row in self.encode_whole([f"{text}1" for text in texts])]

    def encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Return one row of token ids per text, to the text's end."""
        if not texts:
            return []
        # special tokens of the record are content, never control; those around it are meant
        marked = [
            self.head
            + as_content(self.tokenizer, text[len(self.head) : len(text) - len(self.tail)])
            + text[len(text) - len(self.tail) :]
            for text in texts
        ]
        rows = encode_all(self.tokenizer, marked, special=not self.chat_template)
        return [row[: len(row) - self.trailing] for row in rows] if self.trailing else rows

    def offsets(self, text: str) -> list[tuple[int, int]] | None:
        """Return each token's first and last character, None where the tokenizer has none."""
        if not self.tokenizer.is_fast:
            return None
        encoded = self.tokenizer(
            text,
            add_special_tokens=not self.chat_template,
            return_offsets_mapping=True,
            verbose=False,
        )["offset_mapping"]
        return encoded[: len(encoded) - self.trailing]


def _trailing_specials(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many special tokens the tokenizer adds after a text."""
    probe = "a"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full = tokenizer(probe, add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return len(full) - start - len(bare)
    return 0


def find_rating_tokens(
    encoder: Encoder, contexts: Sequence[str], num_ratings: int
) -> tuple[int, ...]:
    """Return the ids of the tokens with which every context goes on as "1" to "R".

    Parameters
    ----------
    encoder:
        The tokenizer, as the scoring uses it.
    contexts:
        Texts that end where the rating comes: one per rating prompt at least.
    num_ratings:
        R, 2 to 9.

    Raises
    ------
    UserError
        When a rating is not exactly one token that decodes to its digit, or two ratings
        share one: the message names the tokenizer and shows what it produced.
    """
    found: tuple[int, ...] | None = None
    for context in contexts:
        ids = _tokens_after(encoder, context, num_ratings)
        if found is not None and ids != found:
            raise _refusal(encoder, context, num_ratings, "the tokens differ between prompts")
        found = ids
    if found is None:
        raise ValueError("rating tokens need at least one context")
    return found


def _tokens_after(encoder: Encoder, context: str, num_ratings: int) -> tuple[int, ...]:
    digits = [str(rating) for rating in range(1, num_ratings + 1)]
    base = encoder.encode([context])[0]
    ids: list[int] = []
    for digit, row in zip(digits, encoder.encode_whole([context + d for d in digits]), strict=True):
        if row[: len(base)] != base:
            reason = f'"{digit}" merges with the text before it'
            raise _refusal(encoder, context, num_ratings, reason)
        if len(row) != len(base) + 1:
            reason = f'"{digit}" becomes {len(row) - len(base)} tokens instead of one'
            raise _refusal(encoder, context, num_ratings, reason)
        if str(encoder.tokenizer.decode([row[-1]])).strip() != digit:
            reason = f'the token after the question does not read "{digit}"'
            raise _refusal(encoder, context, num_ratings, reason)
        ids.append(row[-1])
    if len(set(ids)) != len(ids):
        raise _refusal(encoder, context, num_ratings, "several ratings share one token")
    return tuple(ids)


def _refusal(encoder: Encoder, context: str, num_ratings: int, reason: str) -> UserError:
    tail = 6
    base = encoder.encode([context])[0]
    lines = []
    for rating in range(1, num_ratings + 1):
        row = encoder.encode_whole([f"{context}{rating}"])[0]
        lines.append(f"  {rating}: {_shown(encoder, row[-tail:])}")
    return UserError(
        f"the tokenizer of {encoder.tokenizer.name_or_path} cannot be asked for ratings 1 to "
        f"{num_ratings}: {reason}.\n  the question ends in {_shown(encoder, base[-tail:])}; with "
        "a rating after it, the text ends in\n" + "\n".join(lines),
        hint="use a model whose tokenizer writes a digit as one token of its own; with a chat "
        "template (rating.chat_template: true) other text stands before the rating",
    )


def _shown(encoder: Encoder, ids: Sequence[int]) -> str:
    return " ".join(repr(token) for token in encoder.tokenizer.convert_ids_to_tokens(list(ids)))
