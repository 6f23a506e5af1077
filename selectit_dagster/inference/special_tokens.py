"""Special tokens inside a record's text are content: split like other text, never control.

A text that is put into a template carries a mark inside each special token of its own. Only the
template's tokens are then read as control; the marks are gone from what is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# a private-use character, which no tokenizer meets: it is taken out before
MARK = "\ue002"
_KNOWN = "selectit_control"


def control_tokens(tokenizer: Any) -> re.Pattern[str] | None:  # noqa: ANN401
    """Return what finds the tokenizer's special tokens in a text; None where it has none."""
    known = getattr(tokenizer, _KNOWN, None)
    count = len(tokenizer)
    if known is None or known[0] != count:
        decoder = getattr(tokenizer, "added_tokens_decoder", {})
        names = {str(token) for token in tokenizer.all_special_tokens}
        names |= {str(token) for token in decoder.values() if token.special}
        longest = sorted(filter(None, names), key=len, reverse=True)
        known = (count, re.compile("|".join(map(re.escape, longest))) if longest else None)
        setattr(tokenizer, _KNOWN, known)
    return known[1]


def as_content(tokenizer: Any, text: str) -> str:  # noqa: ANN401
    """Return ``text`` with a mark inside each special token that is written in it."""
    control = control_tokens(tokenizer)
    if control is None or not control.search(text):
        return text
    return control.sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", text)


def encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:  # noqa: ANN401
    """Return the token ids of a text whose marked special tokens are content.

    Parameters
    ----------
    tokenizer:
        Any tokenizer of transformers.
    text:
        With marks from ``as_content``, or without any.
    special:
        Whether the tokenizer adds its own special tokens around the text.
    """

    def ids(part: str, *, split: bool = False, add: bool = False) -> list[int]:
        more = {"split_special_tokens": True} if split else {}
        found: list[int] = tokenizer(part, add_special_tokens=add, verbose=False, **more)[
            "input_ids"
        ]
        return found

    control = control_tokens(tokenizer)
    if MARK not in text or control is None:
        return ids(text, add=special)
    if not control.search(text):  # no control at all: one piece, without seams
        return ids(_unmarked(control, text), split=True, add=special)
    found: list[int] = []
    for number, part in enumerate(_pieces(control, text)):
        content = number % 2 == 1
        if part or number == 0:
            found += ids(part, split=content, add=special and number == 0)
        if number == 0 and special and found and found[-1] == tokenizer.eos_token_id:
            found.pop()
    return found


def encode_all(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:  # noqa: ANN401
    """Return what :func:`encode` gives for each text; those without marks go all at once."""
    rows: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    for at, text in enumerate(texts):
        if MARK in text:
            rows[at] = encode(tokenizer, text, special=special)
    return rows


def _pieces(control: re.Pattern[str], text: str) -> list[str]:
    """Return other text and marked special tokens (without their marks), in turn."""
    pieces, end = [""], 0
    for mark in re.finditer(MARK, text):
        found = control.match(text[mark.start() - 1 : mark.start()] + text[mark.end() :])
        if mark.start() > end and found:
            pieces[-1] += text[end : mark.start() - 1]
            pieces += [found[0], ""]
            end = mark.start() + len(found[0])
    pieces[-1] += text[end:]
    return pieces


def _unmarked(control: re.Pattern[str], text: str) -> str:
    return "".join(_pieces(control, text))
