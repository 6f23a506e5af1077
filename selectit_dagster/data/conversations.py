"""Conversations: how several messages become one instruction and one response."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selectit_dagster.data.fields import Extractor, Texts, Unusable, type_name
from selectit_dagster.data.text import is_blank

_ROLE_KEYS = ("from", "role")
_TEXT_KEYS = ("value", "content", "text")
_USER = frozenset({"human", "user", "prompter"})
_ASSISTANT = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"})


@dataclass(frozen=True)
class Message:
    """One message of a conversation: its role as written, its kind and its text."""

    role: str
    kind: str  # user, assistant or other
    text: str


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
        if all(is_blank(message.text) for message in messages[first:last]):
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
    role_key = _key_of(entry, _ROLE_KEYS)
    role = entry.get(role_key) if role_key else None
    if not isinstance(role, str) or is_blank(role):
        found = f"is {type_name(role)}, expected text" if role_key else "is missing"
        raise Unusable(
            f"{where}.{role_key or 'role'}", "is blank" if isinstance(role, str) else found
        )
    lowered = role.strip().lower()
    kind = "user" if lowered in _USER else "assistant" if lowered in _ASSISTANT else "other"
    text_key = _key_of(entry, _TEXT_KEYS) or "content"
    value = entry.get(text_key)
    if value is None and entry.get("tool_calls"):
        return Message("tool_calls", "other", json.dumps(entry["tool_calls"], ensure_ascii=False))
    return Message(role.strip(), kind, _content(value, f"{where}.{text_key}", text_key in entry))


def _key_of(entry: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the name that the entry uses; typed tables also hold the others, as nulls."""
    present = [name for name in names if name in entry]
    return next((name for name in present if entry[name] is not None), next(iter(present), None))


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
