"""Record layouts: how instruction, input and response are found in one parsed record.

A layout is a function from a parsed record (a dict) to ``Texts``; it raises ``Unusable``
with the field and the reason when the record cannot be used. Layouts never repair: what
is not text is rejected and named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selectit_dagster.data.text import is_blank
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ColumnMapping, DatasetSection

Texts = tuple[str, str, str, int]  # instruction, input, response, turns
Extractor = Callable[[dict[str, Any]], Texts]

WHOLE_RECORD = "(record)"

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
_ROLE_KEYS = ("from", "role")
_TEXT_KEYS = ("value", "content", "text")
_USER = frozenset({"human", "user", "prompter"})
_ASSISTANT = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"})
_TYPE_NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
    type(None): "null",
}


class Unusable(Exception):  # noqa: N818 - an outcome that is named, not an error of the run
    """One record that cannot be used: the field and the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class Message:
    """One message of a conversation: its role as written, its kind and its text."""

    role: str
    kind: str  # user, assistant or other
    text: str


def type_name(value: object) -> str:
    """Return what a parsed value is, in words."""
    return _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def required_text(record: dict[str, Any], field: str) -> str:
    """Return the text of ``field``, or raise ``Unusable``."""
    value = record.get(field)
    if type(value) is str:
        return value
    if value is None:
        raise Unusable(field, "is null" if field in record else "is missing")
    raise Unusable(field, f"is {type_name(value)}, expected text")


def optional_text(record: dict[str, Any], field: str | None) -> str:
    """Return the text of ``field``; absent and null both mean that there is none."""
    value = record.get(field) if field is not None else None
    if value is None:
        return ""
    if type(value) is str:
        return value
    raise Unusable(str(field), f"is {type_name(value)}, expected text")


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


def conversation_extractor(key: str, turns: str, other_roles: str) -> Extractor:
    """Return the extractor of conversations under ``key``.

    Parameters
    ----------
    key:
        Field that holds the list of messages.
    turns:
        ``first-turn``: the first question and its answer; ``last-turn``: the last answer
        and what was said since the answer before it; ``whole``: the last answer, and all
        before it is the instruction. Messages after the last answer are left out.
    other_roles:
        ``reject`` a record with a message by neither user nor assistant (system, tool,
        ...), or ``keep`` such messages as labelled text of the instruction.
    """

    def extract(record: dict[str, Any]) -> Texts:
        messages = _messages(record, key)
        if other_roles == "reject":
            for index, message in enumerate(messages):
                if message.kind == "other":
                    raise Unusable(
                        f"{key}[{index}]",
                        f"has the role {message.role[:40]!r}, neither user nor assistant "
                        "(dataset.other_roles: keep would keep it as text)",
                    )
        answers = [i for i, message in enumerate(messages) if message.kind == "assistant"]
        first, last = _span(messages, answers, key, turns)
        instruction = _joined(messages[first:last])
        if is_blank(instruction):
            raise Unusable(key, "has a blank instruction")
        return instruction, "", messages[last].text, min(len(answers), 32_767)

    return extract


def _span(messages: list[Message], answers: list[int], key: str, turns: str) -> tuple[int, int]:
    """Return the first message of the instruction and the index of the answer."""
    users = [i for i, message in enumerate(messages) if message.kind == "user"]
    if not users:
        raise Unusable(key, "has no message by the user")
    answered = [i for i in answers if i > users[0]]
    if not answered:
        raise Unusable(key, "has no answer to the user")
    if turns == "first-turn":
        before = [i for i in answers if i < answered[0]]
        return (before[-1] + 1 if before else 0), answered[0]
    last = answered[-1]
    if turns == "whole":
        return 0, last
    start = max((i + 1 for i in answers if i < last), default=0)
    if not any(start <= i < last for i in users):
        # an answer in several messages: from the question before all of them
        start = max(i for i in users if i < last)
    return start, last


def _joined(messages: Sequence[Message]) -> str:
    """Return one message as it is, several with the speaker's name before each."""
    if len(messages) == 1:
        return messages[0].text
    return "\n".join(f"{_label(message)}: {message.text}" for message in messages)


def _label(message: Message) -> str:
    if message.kind == "other":
        return message.role.replace("_", " ").capitalize()
    return message.kind.capitalize()


def _messages(record: dict[str, Any], key: str) -> list[Message]:
    """Return the checked messages of a conversation."""
    value = record.get(key)
    if isinstance(value, dict):
        value = _rows_of(value)
    if not isinstance(value, list):
        if value is None:
            raise Unusable(key, "is null" if key in record else "is missing")
        raise Unusable(key, f"is {type_name(value)}, expected a list of messages")
    if not value:
        raise Unusable(key, "is an empty list")
    return [_message(entry, f"{key}[{index}]") for index, entry in enumerate(value)]


def _rows_of(columns: dict[str, Any]) -> object:
    """Return messages that a typed table holds as one list per field; else what was given."""
    lists = list(columns.values())
    if not lists or not all(isinstance(entries, list) for entries in lists):
        return columns
    if len({len(entries) for entries in lists}) != 1:
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _message(entry: object, where: str) -> Message:
    if not isinstance(entry, dict):
        raise Unusable(where, f"is {type_name(entry)}, expected a message")
    role_key = next((name for name in _ROLE_KEYS if name in entry), None)
    role = entry.get(role_key) if role_key else None
    if not isinstance(role, str) or is_blank(role):
        found = f"is {type_name(role)}, expected text" if role_key else "is missing"
        raise Unusable(f"{where}.{role_key or 'role'}", found if role != "" else "is blank")
    lowered = role.strip().lower()
    kind = "user" if lowered in _USER else "assistant" if lowered in _ASSISTANT else "other"
    text_key = next((name for name in _TEXT_KEYS if name in entry), "content")
    value = entry.get(text_key)
    if value is None and entry.get("tool_calls"):
        return Message("tool_calls", "other", _as_json(entry["tool_calls"]))
    return Message(role.strip(), kind, _content(value, f"{where}.{text_key}", text_key in entry))


def _content(value: object, where: str, present: bool) -> str:
    """Return a message's text; a list of text parts is joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = []
        for index, part in enumerate(value):
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type_name(part)
                raise Unusable(f"{where}[{index}]", f"is {str(kind)[:40]}, expected a text part")
            parts.append(part["text"])
        return "\n".join(parts)
    if value is None:
        raise Unusable(where, "is null" if present else "is missing")
    raise Unusable(where, f"is {type_name(value)}, expected text")


def _as_json(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


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
    if section.layout == "columns" or (section.layout == "auto" and section.columns is not None):
        mapping = section.columns
        if mapping is None:  # pragma: no cover - the section's own validator refuses it
            raise UserError("layout: columns needs dataset.columns")
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
        found = sorted({str(column) for record in samples for column in record})
        listed = ", ".join(found[:20]) or "none"
        raise UserError(
            f"{source}: the record layout is not one that is recognised; columns found: {listed}",
            hint="name the columns: dataset.columns: {instruction: ..., response: ...}",
        )
    return best[1]


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
                f"but the first {len(samples)} records have: {', '.join(found[:20])}",
                hint="correct dataset.columns",
            )
