"""Conversations: how several messages become one instruction and one response."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from selectit_dagster.data.fields import Texts, Unusable, type_name
from selectit_dagster.data.text import is_blank

ROLE_KEYS = ("from", "role", "type", "speaker")
TEXT_KEYS = ("value", "content", "text", "parts", "message")
USER, ASSISTANT, SYSTEM, OTHER = "user", "assistant", "system", "other"
_NAMES = {
    USER: "human user prompter question instruction",
    ASSISTANT: "gpt gpt4 gpt-4 chatgpt bing bard claude llm assistant ai model bot chatbot output "
    "function_call answer response",
    SYSTEM: "system developer",
}
ROLES = {name: kind for kind, names in _NAMES.items() for name in names.split()}
# answers that are calls of a tool keep that name before them
_CALLS = ("tool_calls", "function_call")
# one turn written as an object of its two sides
_PAIRS = (
    *(("human", "assistant"), ("user", "assistant"), ("input", "output"), ("user", "bot")),
    *(("question", "answer"), ("prompt", "response"), ("human", "gpt")),
)


@dataclass(frozen=True)
class Message:
    """One message of a conversation: its role as written, its kind and its text."""

    role: str
    kind: str  # user, assistant, system or other
    text: str


def read_messages(
    value: object, where: str, roles: Mapping[str, str], *, present: bool = True
) -> list[Message]:
    """Return the messages of a conversation, in whichever of the usual forms it is written.

    A list of messages (role and text under their usual keys, text parts, tool calls), of pairs
    (``{"human": ..., "assistant": ...}`` or ``[question, answer]``), or of texts by turns; any of
    them as JSON text, and messages as one list per field, as typed tables hold them.

    Raises
    ------
    Unusable
        With the whole path of what cannot be read (``conversation[0].role``).
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = _parsed(value)
    if isinstance(value, dict):
        value = _rows_of(value)
    if not isinstance(value, list):
        if value is None:
            raise Unusable(where, "is null" if present else "is missing")
        raise Unusable(where, f"is {type_name(value)}, expected a list of messages")
    if not value:
        raise Unusable(where, "is an empty list")
    if all(type(entry) is str for entry in value):
        parsed = [_parsed(entry) for entry in value]
        if not all(isinstance(entry, dict) for entry in parsed):
            kinds = (USER, ASSISTANT)
            return [Message(kinds[i % 2], kinds[i % 2], text) for i, text in enumerate(value)]
        value = parsed
    messages: list[Message] = []
    for index, entry in enumerate(value):
        messages += _entry(entry, f"{where}[{index}]", roles)
    return messages


def _parsed(text: str) -> object:
    """Return what a JSON text holds, or the text itself."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _entry(entry: object, where: str, roles: Mapping[str, str]) -> list[Message]:
    """Return the message, or the two messages of a pair."""
    if isinstance(entry, list) and len(entry) == 2 and all(isinstance(t, str) for t in entry):
        return [Message(USER, USER, entry[0]), Message(ASSISTANT, ASSISTANT, entry[1])]
    if not isinstance(entry, dict):
        raise Unusable(where, f"is {type_name(entry)}, expected a message")
    if _key_of(entry, ROLE_KEYS) is None:
        for asked, answered in _PAIRS:
            if asked in entry and answered in entry:
                return [
                    Message(USER, USER, _text(entry[asked], f"{where}.{asked}")),
                    Message(ASSISTANT, ASSISTANT, _text(entry[answered], f"{where}.{answered}")),
                ]
    return [_message(entry, where, roles)]


def _message(entry: dict[str, Any], where: str, roles: Mapping[str, str]) -> Message:
    role_key = _key_of(entry, ROLE_KEYS)
    role = entry.get(role_key) if role_key else None
    if not isinstance(role, str) or is_blank(role):
        found = f"is {type_name(role)}, expected text" if role_key else "is missing"
        raise Unusable(
            f"{where}.{role_key or 'role'}", "is blank" if isinstance(role, str) else found
        )
    name = role.strip()
    kind = roles.get(name) or roles.get(name.lower()) or ROLES.get(name.lower(), OTHER)
    inner = entry.get("data")
    if isinstance(inner, dict) and "content" in inner:  # LangChain's {"type", "data": {"content"}}
        entry, where = inner, f"{where}.data"
    text_key = _key_of(entry, TEXT_KEYS) or "content"
    value, calls = entry.get(text_key), entry.get("tool_calls")
    if calls:
        called = json.dumps(calls, ensure_ascii=False)
        kind = ASSISTANT if kind == OTHER else kind
        if value in (None, ""):
            return Message(_CALLS[0], kind, called)
        return Message(name, kind, f"{_text(value, f'{where}.{text_key}')}\n{called}")
    if value is None:
        raise Unusable(f"{where}.{text_key}", "is null" if text_key in entry else "is missing")
    return Message(name, kind, _text(value, f"{where}.{text_key}"))


def _key_of(entry: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the name that the entry uses; typed tables also hold the others, as nulls."""
    present = [name for name in names if name in entry]
    return next((name for name in present if entry[name] is not None), next(iter(present), None))


def _text(value: object, where: str) -> str:
    """Return a message's text; a list of text parts is joined, other parts are named in it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))
    if value is None:
        raise Unusable(where, "is null")
    raise Unusable(where, f"is {type_name(value)}, expected text")


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type_name(part)
    raise Unusable(where, f"is {str(kind)[:40]}, expected a text part")


def _rows_of(columns: dict[str, Any]) -> object:
    """Return messages that a typed table holds as one list per field; else what was given."""
    lists = list(columns.values())
    if not lists or not all(isinstance(entries, list) for entries in lists):
        return [columns] if _key_of(columns, ROLE_KEYS) else columns
    if len({len(entries) for entries in lists}) != 1:
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def as_texts(
    messages: Sequence[Message],
    context: Sequence[Message],
    where: str,
    *,
    turns: str,
    other_roles: str,
    losses: Counter[str],
) -> Texts:
    """Return instruction, empty input, response and number of answers of a conversation.

    Parameters
    ----------
    messages:
        The conversation.
    context:
        What stands beside it and belongs to it (system prompt, tools, images): labelled text
        before the instruction, as system messages inside the conversation are.
    turns:
        ``first-turn``: the first question and its answer; ``last-turn``: the last answer
        and what was said since the answer before it; ``whole``: the last answer, and all
        before it is the instruction.
    other_roles:
        ``reject`` a record with a message by neither user, assistant nor system (tool results
        and the like), or ``keep`` such messages as labelled text of the instruction.
    losses:
        Counts what a user could miss: messages after the last answer.
    """
    if other_roles == "reject":
        for index, message in enumerate(messages):
            if message.kind == OTHER:
                raise Unusable(
                    f"{where}[{index}]",
                    f"has the role {message.role[:40]!r}, neither user nor assistant "
                    "(dataset.other_roles: keep would keep it as text)",
                )
    answers = [i for i, message in enumerate(messages) if message.kind == ASSISTANT]
    first, last = _span(messages, answers, where, turns)
    before = [m for m in messages[:first] if m.kind == SYSTEM]
    asked = [*context, *before, *messages[first:last]]
    if all(is_blank(message.text) for message in messages[first:last]):
        raise Unusable(where, "has a blank instruction")
    if last - first > 1:
        losses["turns were joined into one instruction"] += 1
    if turns != "first-turn" and last + 1 < len(messages):
        losses["messages after the last answer were left out"] += 1
    return joined(asked), "", messages[last].text, min(len(answers), 32_767)


def _span(
    messages: Sequence[Message], answers: list[int], where: str, turns: str
) -> tuple[int, int]:
    """Return the first message of the instruction and the index of the answer."""
    users = [i for i, message in enumerate(messages) if message.kind == USER]
    if not users:
        raise Unusable(where, "has no message by the user")
    answered = [i for i in answers if i > users[0]]
    if not answered:
        raise Unusable(where, "has no answer to the user")
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


def joined(messages: Sequence[Message]) -> str:
    """Return one message as it is, several with the speaker's name before each."""
    if len(messages) == 1:
        return messages[0].text
    return "\n".join(f"{_label(message)}: {message.text}" for message in messages)


def _label(message: Message) -> str:
    if message.kind == OTHER or message.role.lower() in _CALLS:
        return message.role.replace("_", " ").capitalize()
    return message.kind.capitalize()
