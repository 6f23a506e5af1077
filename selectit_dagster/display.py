"""Texts from elsewhere as people may see them: nothing hidden, nothing obeyed, not too long."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
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


def cell_text(value: Any) -> str:  # noqa: ANN401 - any cell
    """Return a table's cell as text: counts with separators, figures with four digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        whole = abs(value) >= 10_000
        return "–" if value != value else f"{value:,.0f}" if whole else f"{value:.4g}"
    return one_line(value, 1000)


def is_numeric(column: Iterable[Any]) -> bool:
    """Tell whether a table's column holds only numbers and empty cells."""
    cells = [cell for cell in column if cell not in (None, "")]
    return bool(cells) and all(map(_is_number, cells))


def _is_number(cell: Any) -> bool:  # noqa: ANN401 - any cell
    if isinstance(cell, str):
        return cell.strip("+-%").replace(",", "").replace(".", "", 1).isdigit()
    return isinstance(cell, int | float)
