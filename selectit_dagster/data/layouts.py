"""Record layouts: how instruction, input and response are found in one parsed record.

A layout is a function from a parsed record (a dict) to ``Texts``; it raises ``Unusable``
with the field and the reason when the record cannot be used. Layouts never repair: what
is not text is rejected and named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from selectit_dagster.data.conversations import conversation_extractor
from selectit_dagster.data.fields import (
    Extractor,
    Texts,
    Unusable,
    optional_text,
    required_text,
)
from selectit_dagster.data.text import is_blank, shown
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ColumnMapping, DatasetSection

# (instruction, input, response) columns that are recognised without being named
KNOWN_COLUMNS: tuple[tuple[str, str | None, str], ...] = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("instruction", "input", "response"),
    ("instruction", None, "completion"),
    ("instruction", None, "answer"),
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("prompt", None, "output"),
    ("question", "context", "answer"),
    ("question", None, "response"),
    ("query", None, "response"),
    ("query", None, "answer"),
    ("problem", None, "solution"),
)
CONVERSATION_KEYS = ("conversations", "messages", "conversation")


def columns_extractor(mapping: ColumnMapping) -> Extractor:
    """Return the extractor of records with one column per part."""
    instruction_field, response_field = mapping.instruction, mapping.response
    input_field = mapping.input

    def extract(record: dict[str, Any]) -> Texts:
        instruction = required_text(record, instruction_field)
        if is_blank(instruction):
            raise Unusable(instruction_field, "is blank")
        given = optional_text(record, input_field)
        return instruction, given, required_text(record, response_field), 1

    return extract


@dataclass(frozen=True)
class Layout:
    """The layout of a dataset: its name, its extractor and the fields it uses."""

    name: str
    extract: Extractor
    fields: dict[str, str | None]


def choose_layout(section: DatasetSection, samples: list[dict[str, Any]], source: str) -> Layout:
    """Return the layout that the options force or the first records show.

    Parameters
    ----------
    section:
        The dataset's options.
    samples:
        The first parsed records.
    source:
        Name of the dataset in messages.

    Raises
    ------
    UserError
        When no layout fits, naming the columns that were found.
    """
    mapping = section.columns
    # a section of layout: columns has a mapping, its own validator sees to it
    if mapping is not None and section.layout in {"auto", "columns"}:
        _check_mapping(mapping, samples, source)
        return _column_layout("columns", mapping)
    if section.layout == "alpaca":
        return _column_layout("alpaca", _mapping(KNOWN_COLUMNS[0]))
    if section.layout in {"sharegpt", "messages"}:
        order = CONVERSATION_KEYS if section.layout == "sharegpt" else CONVERSATION_KEYS[1::-1]
        key = next((k for k in order if any(k in r for r in samples)), order[0])
        return _conversation_layout(section.layout, key, section)
    return _detected(section, samples, source)


def _detected(section: DatasetSection, samples: list[dict[str, Any]], source: str) -> Layout:
    """Return the layout that most of the first records fit."""
    best: tuple[int, Layout] | None = None
    for key in CONVERSATION_KEYS:
        fits = sum(isinstance(record.get(key), list | dict) for record in samples)
        if fits and (best is None or fits > best[0]):
            name = "messages" if key == "messages" else "sharegpt"
            best = fits, _conversation_layout(name, key, section)
    for known in KNOWN_COLUMNS:
        needed = [column for column in (known[0], known[2]) if column]
        fits = sum(all(column in record for column in needed) for record in samples)
        if fits and (best is None or fits > best[0]):
            name = "alpaca" if known is KNOWN_COLUMNS[0] else "columns"
            given = known[1] if any(known[1] in record for record in samples) else None
            mapping = _mapping((known[0], given if name == "columns" else known[1], known[2]))
            best = fits, _column_layout(name, mapping)
    if best is None:
        listed = column_list({str(column) for record in samples for column in record})
        raise UserError(
            f"{source}: the record layout is not one that is recognised; columns found: {listed}",
            hint="name the columns: dataset.columns: {instruction: ..., response: ...}",
        )
    return best[1]


def column_list(names: Iterable[str]) -> str:
    """Return up to 20 column names, sorted, fit for one line of a message.

    A name that blanks or a comma would make unclear stands in quotes.
    """
    ordered = sorted(names)
    unclear = [name != name.strip() or not name or "," in name for name in ordered[:20]]
    marks = ['"' if doubt else "" for doubt in unclear]
    listed = [f"{mark}{shown(n, 80)}{mark}" for mark, n in zip(marks, ordered, strict=False)]
    more = [f"and {len(ordered) - 20:,} more"] if len(ordered) > 20 else []
    return ", ".join(listed + more) or "none"


def _mapping(known: tuple[str, str | None, str]) -> ColumnMapping:
    return ColumnMapping(instruction=known[0], input=known[1], response=known[2])


def _column_layout(name: str, mapping: ColumnMapping) -> Layout:
    fields = {
        "instruction": mapping.instruction,
        "input": mapping.input,
        "response": mapping.response,
    }
    return Layout(name, columns_extractor(mapping), fields)


def _conversation_layout(name: str, key: str, section: DatasetSection) -> Layout:
    extract = conversation_extractor(key, section.turns, section.other_roles)
    return Layout(name, extract, {"conversation": key})


def _check_mapping(mapping: ColumnMapping, samples: list[dict[str, Any]], source: str) -> None:
    """Refuse a mapping to a column that none of the first records has."""
    found = sorted({str(column) for record in samples for column in record})
    for part, column in (
        ("instruction", mapping.instruction),
        ("input", mapping.input),
        ("response", mapping.response),
    ):
        if column is not None and samples and column not in found:
            raise UserError(
                f"{source}: dataset.columns.{part} names the column {column!r}, "
                f"but the first {len(samples)} records have: {column_list(found)}",
                hint="correct dataset.columns",
            )
