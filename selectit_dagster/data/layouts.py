"""Record layouts: how instruction, input and response are found in one parsed record.

A layout is a function from a parsed record (a dict) to ``Texts``; it raises ``Unusable``
with the field and the reason when the record cannot be used. Layouts never repair: what
is not text is rejected and named. What stands in a column beside the text and belongs to
the record (system prompt, history, tools, images) is labelled text before the instruction.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from selectit_dagster.data.conversations import (
    ASSISTANT,
    OTHER,
    SYSTEM,
    USER,
    Message,
    as_texts,
    joined,
    read_messages,
)
from selectit_dagster.data.fields import (
    Excluded,
    Extractor,
    Texts,
    Unusable,
    found,
    optional_text,
    required_text,
    type_name,
)
from selectit_dagster.data.text import is_blank
from selectit_dagster.display import one_line
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ColumnMapping, DatasetSection

# (instruction, input, response) columns that are recognised without being named
KNOWN_COLUMNS: tuple[tuple[str, str | None, str], ...] = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("instruction", "input", "response"),
    ("instruction", None, "completion"),
    ("instruction", None, "answer"),
    ("instruction", "input", "generation"),
    ("instruction", "input", "target"),
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("prompt", None, "output"),
    ("prompt", None, "generation"),
    ("prompt", None, "answer"),
    ("question", "context", "answer"),
    ("question", None, "response"),
    ("question", None, "output"),
    ("query", None, "response"),
    ("query", None, "answer"),
    ("query", None, "output"),
    ("problem", None, "solution"),
    ("inputs", None, "targets"),
    ("input", None, "target"),
    ("input", None, "output"),
    ("source", None, "target"),
    ("human", None, "assistant"),
)
CONVERSATION_KEYS = ("conversations", "messages", "conversation", "contents", "dialog", "dialogue")
# columns that belong to a record, by the part that they are
CONTEXT_COLUMNS: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "images": ("images", "image"),
}


@dataclass
class Layout:
    """The layout of a dataset: its name, its extractor and the columns it uses.

    Attributes
    ----------
    losses:
        What a user could miss, counted while records are read.
    """

    name: str
    extract: Extractor
    fields: dict[str, str | None]
    losses: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Parts:
    """What every extractor knows: the options, the context columns, and what it counts."""

    section: DatasetSection
    context: tuple[tuple[str, str], ...]  # (part, column)
    losses: Counter[str]

    def beside(self, record: dict[str, Any]) -> tuple[list[Message], list[Message]]:
        """Return (system prompt, tools and images; earlier turns) of a record's columns."""
        fixed: list[Message] = []
        earlier: list[Message] = []
        for part, column in self.context:
            value = found(record, column)
            if value in (None, "", [], {}) or (isinstance(value, str) and is_blank(value)):
                continue
            if part == "history":
                earlier = read_messages(value, column, self.section.roles)
            elif part == "system":
                fixed.append(Message(SYSTEM, SYSTEM, required_text(record, column)))
            elif part == "tools" and value != "[]":
                fixed.append(Message("tools", OTHER, _written(value)))
            elif part == "images":
                images = value if isinstance(value, list) else [value]
                fixed.append(Message("images", OTHER, ", ".join(map(_image_name, images))))
                self.losses["images are named to the rater, not shown"] += 1
        return fixed, earlier

    def texts(
        self,
        record: dict[str, Any],
        messages: list[Message],
        where: str,
        answer: list[Message] | None = None,
    ) -> Texts:
        """Return the texts of a conversation with what stands beside it."""
        fixed, earlier = self.beside(record)
        if answer is not None:
            messages = [*messages, *answer]
        return as_texts(
            [*earlier, *messages],
            fixed,
            where,
            turns=self.section.turns,
            other_roles=self.section.other_roles,
            losses=self.losses,
        )


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _image_name(value: object) -> str:
    """Return how an image is called: its path or address, else a digest of what it is."""
    if isinstance(value, dict):
        value = value.get("path") or value.get("url") or value.get("bytes") or value
    if isinstance(value, str):
        return value[:200]
    from selectit_dagster.artefacts.files import sha256_json

    return f"image {sha256_json(str(value))[:16]}"


def _from_columns(
    record: dict[str, Any], *, parts: _Parts, mapping: ColumnMapping, bad: str | None
) -> Texts:
    """Read a record with one column per part."""
    asked, answered = str(mapping.instruction), str(mapping.response)
    instruction = required_text(record, asked)
    given = optional_text(record, mapping.input)
    if is_blank(instruction):
        if mapping.input is None or is_blank(given):
            raise Unusable(asked, "is blank")
        instruction, given = given, ""  # the question stands in the input alone
    _refuse_bad(record, bad)
    response = required_text(record, answered)
    fixed, earlier = parts.beside(record)
    if not (fixed or earlier):
        return instruction, given, response, 1
    if parts.section.turns == "last-turn":
        earlier = [m for m in earlier if m.kind == SYSTEM]
    whole = joined([*fixed, *earlier, Message(USER, USER, instruction)])
    return whole, given, response, 1 + sum(m.kind == ASSISTANT for m in earlier)


def _from_messages(
    record: dict[str, Any], *, parts: _Parts, key: str, chosen: str | None, bad: str | None
) -> Texts:
    """Read a record with a list of messages, and perhaps the preferred answer beside it."""
    roles = parts.section.roles
    messages = read_messages(found(record, key), key, roles, present=key in record)
    _refuse_bad(record, bad)
    answer = _answer(record, chosen, parts) if chosen and found(record, chosen) else None
    return parts.texts(record, messages, key, answer)


def _from_preference(
    record: dict[str, Any], *, parts: _Parts, prompt: str | None, answer: str, bad: str | None
) -> Texts:
    """Read trl's forms: a prompt (text or messages) and an answer (text or messages)."""
    roles = parts.section.roles
    replies = _answer(record, answer, parts)
    if any(message.kind == USER for message in replies) or prompt is None:
        _refuse_bad(record, bad)
        return parts.texts(record, replies, answer)  # the answer column holds the conversation
    value = found(record, prompt)
    if isinstance(value, str) and value.lstrip()[:1] != "[":
        if is_blank(value):
            raise Unusable(prompt, "is blank")
        messages = [Message(USER, USER, value)]
    else:
        messages = read_messages(value, prompt, roles, present=prompt in record)
    _refuse_bad(record, bad)
    return parts.texts(record, messages, prompt, replies)


def _answer(record: dict[str, Any], column: str, parts: _Parts) -> list[Message]:
    """Return an answer that is text, one message or several."""
    value = found(record, column)
    if isinstance(value, str) and value.lstrip()[:1] != "[":
        return [Message(ASSISTANT, ASSISTANT, value)]
    return read_messages(value, column, parts.section.roles, present=column in record)


def _refuse_bad(record: dict[str, Any], bad: str | None) -> None:
    """Leave out an answer that the data themselves call a bad one (KTO)."""
    if bad is not None and found(record, bad) in (False, "false", "False"):
        raise Excluded(bad, "says that the answer is a bad one")


def _from_instances(record: dict[str, Any], *, parts: _Parts) -> Texts:
    """Read self-instruct's form: an instruction and a list of worked instances."""
    instances = record.get("instances")
    if not isinstance(instances, list) or not instances:
        what = "is an empty list" if instances == [] else f"is {type_name(instances)}"
        raise Unusable("instances", what if "instances" in record else "is missing")
    if not isinstance(instances[0], dict):
        raise Unusable("instances[0]", f"is {type_name(instances[0])}, expected an object")
    if len(instances) > 1:
        parts.losses["instances after the first were left out"] += 1
    mapping = ColumnMapping(instruction="instruction", input="input", response="output")
    flat = {**record, **{k: instances[0].get(k) for k in ("input", "output")}}
    return _from_columns(flat, parts=parts, mapping=mapping, bad=None)


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
    builder = _Builder(section, samples)
    if mapping is not None and section.layout in {"auto", "columns"}:
        _check_mapping(mapping, samples, source)
        return builder.mapped(mapping)
    if section.layout == "alpaca":
        return builder.columns("alpaca", KNOWN_COLUMNS[0])
    if section.layout in {"sharegpt", "messages"}:
        order = CONVERSATION_KEYS if section.layout == "sharegpt" else CONVERSATION_KEYS[1::-1]
        key = next((k for k in order if any(k in r for r in samples)), order[0])
        return builder.conversation(section.layout, key)
    best = builder.detected()
    if best is None:
        names = {str(column) for record in samples for column in record}
        raise UserError(
            f"{source}: the record layout is not one that is recognised; columns found: "
            f"{column_list(names)}",
            hint=f"name the columns: dataset.columns: {{instruction: ..., response: ...}}"
            f"{_near_miss(names)}",
        )
    return best


class _Builder:
    """Makes layouts from the options and the first records."""

    def __init__(self, section: DatasetSection, samples: list[dict[str, Any]]) -> None:
        self.section = section
        self.samples = samples
        # column names as they are written, by their lower-case form; the most frequent wins
        counts = Counter(str(column) for record in samples for column in record)
        self.names = {name.lower(): name for name, _ in reversed(counts.most_common())}
        mapping = section.columns
        self.context = tuple(
            (part, column)
            for part, known in CONTEXT_COLUMNS.items()
            for column in (
                [getattr(mapping, part)]
                if mapping is not None and getattr(mapping, part) is not None
                else [self.names.get(name, name) for name in known]
            )
        )
        # a column `label` says this only beside trl's columns; anywhere else it may be anything
        labels = (
            ("kto_tag", "label") if {"prompt", "completion"} <= set(self.names) else ("kto_tag",)
        )
        self.bad = next((self.names[n] for n in labels if self._holds(n, bool)), None)

    def _holds(self, name: str, kind: type | tuple[type, ...]) -> int:
        """Return in how many of the first records a column holds a value of that kind."""
        column = self.names.get(name, name)
        return sum(isinstance(found(record, column), kind) for record in self.samples)

    def _made(
        self,
        name: str,
        read: Callable[..., Texts],
        used: dict[str, str | None],
        free: set[str] | None = None,
    ) -> Layout:
        losses: Counter[str] = Counter()
        taken = {column for column in used.values() if column} | (free or set())
        context = tuple((p, c) for p, c in self.context if c not in taken)
        parts = _Parts(self.section, context, losses)
        shown_context = {p: c for p, c in context if self._holds(c, object) and _any(self, c)}
        return Layout(name, partial(read, parts=parts), {**used, **shown_context}, losses)

    def columns(self, name: str, known: tuple[str, str | None, str]) -> Layout:
        """Return the layout of one column per part."""
        asked, given, answered = (n and self.names.get(n, n) for n in known)
        mapping = ColumnMapping(instruction=str(asked), input=given, response=str(answered))
        used = {"instruction": asked, "input": given, "response": answered}
        read = partial(_from_columns, mapping=mapping, bad=self.bad)
        return self._made(name, read, used)

    def conversation(self, name: str, key: str) -> Layout:
        """Return the layout of a list of messages, with a preferred answer where there is one."""
        chosen = self.names.get("chosen") if self._holds("chosen", (dict, list, str)) else None
        read = partial(_from_messages, key=key, chosen=chosen, bad=self.bad)
        used: dict[str, str | None] = {"conversation": key}
        if chosen:
            used |= {"response": chosen, "rejected": self.names.get("rejected")}
        return self._made(f"{name} with preferences" if chosen else name, read, used)

    def preference(self, name: str, prompt: str | None, answer: str) -> Layout:
        """Return the layout of a prompt and an answer that may both be messages."""
        read = partial(_from_preference, prompt=prompt, answer=answer, bad=self.bad)
        used: dict[str, str | None] = {"instruction": prompt, "response": answer}
        if answer == self.names.get("chosen"):
            used["rejected"] = self.names.get("rejected")
        return self._made(name, read, used)

    def mapped(self, mapping: ColumnMapping) -> Layout:
        """Return the layout that ``dataset.columns`` describes."""
        if mapping.messages is not None:
            chosen = mapping.chosen or (mapping.response if mapping.instruction is None else None)
            read = partial(_from_messages, key=mapping.messages, chosen=chosen, bad=self.bad)
            used: dict[str, str | None] = {"conversation": mapping.messages, "response": chosen}
            return self._made("columns", read, {**used, "rejected": mapping.rejected})
        if mapping.chosen is not None:
            layout = self.preference("columns", mapping.instruction, mapping.chosen)
            layout.fields["rejected"] = mapping.rejected
            return layout
        used = {
            "instruction": mapping.instruction,
            "input": mapping.input,
            "response": mapping.response,
        }
        read = partial(_from_columns, mapping=mapping, bad=self.bad)
        return self._made("columns", read, used)

    def detected(self) -> Layout | None:
        """Return the layout that most of the first records fit, None when none does."""
        best: tuple[int, Layout] | None = None
        for fits, make in self._candidates():
            if fits and (best is None or fits > best[0]):
                best = fits, make()
        return best[1] if best else None

    def _candidates(self) -> Iterable[tuple[int, Any]]:
        for key in CONVERSATION_KEYS:
            column = self.names.get(key, key)
            fits = self._holds(key, (list, dict)) + self._json_texts(column)
            name = "messages" if key == "messages" else "sharegpt"
            yield fits, partial(self.conversation, name, column)
        if self._holds("data", list):
            yield self._holds("data", list), partial(self.conversation, "ultrachat", "data")
        prompt = next((n for n in ("prompt", "instruction", "question") if n in self.names), None)
        asked = self.names.get(prompt) if prompt else None
        if "chosen" in self.names and "rejected" in self.names:
            fits = self._holds("chosen", (list, str, dict))
            yield fits, partial(self.preference, "preferences", asked, self.names["chosen"])
        if self._holds("completion", list):
            answer = self.names["completion"]
            yield (
                self._holds("completion", list),
                partial(self.preference, "prompt-completion messages", asked, answer),
            )
        if self._holds("instances", list):
            used: dict[str, str | None] = {"instruction": "instruction"}
            used["response"] = "instances"
            yield (
                self._holds("instances", list),
                partial(self._made, "self-instruct", _from_instances, used, {"input", "output"}),
            )
        for known in KNOWN_COLUMNS:
            needed = [self.names.get(n, n) for n in (known[0], known[2])]
            fits = sum(all(column in record for column in needed) for record in self.samples)
            name = "alpaca" if known is KNOWN_COLUMNS[0] else "columns"
            given = known[1] if name == "alpaca" or known[1] in self.names else None
            yield fits, partial(self.columns, name, (known[0], given, known[2]))

    def _json_texts(self, column: str) -> int:
        """Return how many of the first records hold a list as JSON text in a column."""
        texts = (record.get(column) for record in self.samples)
        return sum(isinstance(t, str) and t.lstrip()[:1] == "[" for t in texts)


def _any(builder: _Builder, column: str) -> bool:
    return any(found(record, column) not in (None, "", [], {}) for record in builder.samples)


def _near_miss(names: set[str]) -> str:
    """Return a hint for columns that are nearly those of a known layout."""
    import difflib

    known = sorted({c for k in KNOWN_COLUMNS for c in k if c} | set(CONVERSATION_KEYS))
    close = [
        f"{name} is close to {near[0]}"
        for name in sorted(names)[:20]
        if (near := difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75))
        and near[0] != name.lower()
    ]
    return f" ({'; '.join(close[:3])})" if close else ""


def column_list(names: Iterable[str]) -> str:
    """Return up to 20 column names, sorted, fit for one line of a message.

    A name that blanks or a comma would make unclear stands in quotes.
    """
    ordered = sorted(names)
    unclear = [name != name.strip() or not name or "," in name for name in ordered[:20]]
    marks = ['"' if doubt else "" for doubt in unclear]
    listed = [f"{mark}{one_line(n, 80)}{mark}" for mark, n in zip(marks, ordered, strict=False)]
    more = [f"and {len(ordered) - 20:,} more"] if len(ordered) > 20 else []
    return ", ".join(listed + more) or "none"


def _check_mapping(mapping: ColumnMapping, samples: list[dict[str, Any]], source: str) -> None:
    """Refuse a mapping to a column that none of the first records has."""
    names = sorted({str(column) for record in samples for column in record})
    for part, column in mapping.model_dump(exclude_none=True).items():
        if samples and not any(
            column in record or found(record, column) is not None for record in samples
        ):
            raise UserError(
                f"{source}: dataset.columns.{part} names the column {column!r}, "
                f"but the first {len(samples)} records have: {column_list(names)}",
                hint="correct dataset.columns",
            )
