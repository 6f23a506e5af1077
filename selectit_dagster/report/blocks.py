"""What a report consists of: sections of text, tables, pictures and records.

Both forms of the report, HTML and Markdown, are written from the same blocks, so that they
cannot say different things.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None
_NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?%?")


@dataclass(frozen=True)
class Text:
    """A paragraph; ``tone`` is ``plain``, ``lead``, ``note`` or ``warning``."""

    text: str
    tone: str = "plain"
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows under column names; numbers are set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    kind: str = "table"

    @property
    def numeric(self) -> list[bool]:
        """Tell for each column whether it holds only numbers and empty cells."""
        cells = [[row[i] for row in self.rows] for i in range(len(self.columns))]
        return [
            any(map(_is_number, column)) and all(c in (None, "") or _is_number(c) for c in column)
            for column in cells
        ]

    @property
    def wide(self) -> bool:
        """Whether the table is rather scrolled sideways on a phone than its cells broken."""
        return len(self.columns) > 4


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) or bool(cell and _NUMBER.fullmatch(cell))


@dataclass(frozen=True)
class Picture:
    """A PNG with its title; ``text`` says what it shows to those who cannot see it."""

    title: str
    png: bytes = field(repr=False)
    text: str = ""
    kind: str = "picture"


@dataclass(frozen=True)
class Distribution:
    """One model's answer to one rating prompt: probabilities of ratings 1 to R."""

    model: str
    prompt: int
    probabilities: Sequence[float]
    rating: int
    token_score: float


@dataclass(frozen=True)
class Record:
    """One record as it was rated."""

    record_id: str
    rank: int
    score: float
    sentence_scores: dict[str, float]
    instruction: str
    input: str
    response: str
    distributions: Sequence[Distribution]

    @property
    def by_model(self) -> dict[str, list[Distribution]]:
        """The distributions of each model, in prompt order."""
        table: dict[str, list[Distribution]] = {}
        for entry in self.distributions:
            table.setdefault(entry.model, []).append(entry)
        return table


@dataclass(frozen=True)
class Records:
    """Some records under a common title."""

    title: str
    records: Sequence[Record]
    kind: str = "records"


Block = Text | Table | Picture | Records


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The name under which a link finds it."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    description: str
    subtitle: str
    sections: Sequence[Section]
    warnings: Sequence[str] = ()


# Characters that change how the text around them is shown, in Unicode's category Cf:
# overrides, isolates, zero-width ones. A report must show what a model was given.
_HIDING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = {"\u200c", "\u200d"}  # needed by Persian, Indic scripts and emoji: part of the text


def visible(text: str, *, keep_lines: bool = True) -> str:
    """Return ``text`` with control and direction-changing characters made visible.

    They appear as their code point, ``⟨U+202E⟩``. Line breaks and tabs stay when
    ``keep_lines``; otherwise they appear as ``⏎`` and ``⇥``.
    """
    shown: list[str] = []
    for character in text:
        if character in "\n\t":
            shown.append(character if keep_lines else {"\n": "⏎", "\t": "⇥"}[character])
        elif character in _JOINERS or unicodedata.category(character) not in _HIDING:
            shown.append(character)
        else:
            shown.append(f"⟨U+{ord(character):04X}⟩")
    return "".join(shown)


def clipped(text: str, limit: int) -> str:
    """Return at most ``limit`` characters, saying how many more there are."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def shown(cell: Any) -> str:  # noqa: ANN401 - any cell
    """Return a cell as text: counts with separators, figures with four digits."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        if cell != cell:
            return "–"
        return f"{cell:,.0f}" if abs(cell) >= 10_000 else f"{cell:.4g}"
    return visible(str(cell), keep_lines=False)
