"""Texts from elsewhere as people may see them: nothing hidden, nothing obeyed, not too long."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

# needed by Persian, Indic scripts and emoji: part of the text
_JOINERS = {"\u200c", "\u200d"}


def visible(text: str, *, keep_lines: bool = True) -> str:
    """Return ``text`` with what a terminal or a page would obey, or hide, as escapes.

    Names of files, columns and records, and records themselves, may hold escape sequences,
    terminal titles or marks that turn the direction of what follows. Line feeds and tabs stay
    when ``keep_lines``; otherwise they become escapes, so that one value is one line.
    """
    if text.isprintable():
        return text
    kept = _JOINERS | ({"\n", "\t"} if keep_lines else set())
    return "".join(c if c in kept or not _hides(c) else _escaped(c) for c in text)


def _hides(character: str) -> bool:
    # C: control, format (direction marks), surrogates, private, unassigned; Zl, Zp: line ends
    category = unicodedata.category(character)
    return category[0] == "C" or category in {"Zl", "Zp"}


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def one_line(value: Any, limit: int = 200) -> str:  # noqa: ANN401 - any value of a table
    """Return a value on one line of at most ``limit`` characters before escapes, then ``…``.

    What is no text is written as JSON.
    """
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return visible(text if len(text) <= limit else text[: limit - 1] + "…", keep_lines=False)
