"""Record layouts: how instruction, input and response are found in one parsed record.

A layout names the column of each part; a record that cannot be used raises ``Unusable`` with the
field and the reason. Layouts never repair: what is not text is rejected and named. What stands in a
column beside the text and belongs to the record (system prompt, history, tools, images) is
labelled text before the instruction.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from selectit_dagster.artefacts.files import sha256_json
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
    *(("prompt", None, a) for a in ("completion", "response", "output", "generation", "answer")),
    ("question", "context", "answer"),
    ("question", None, "response"),
    ("question", None, "output"),
    *(("query", None, answer) for answer in ("response", "answer", "output")),
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
_NOTHING: tuple[object, ...] = (None, "", [], {})
_LABELS = ("kto_tag",)
_PROMPTS = ("prompt", "instruction", "question")
_PARTS = ("instruction", "input", "response")
Form = Literal["columns", "conversation", "preference", "instances"]
Columns = dict[str, str | None]  # the column of each part of a record
# layouts with nested values: the name, the form, the column that shows it and what it holds
_NESTED: tuple[tuple[str, Form, str, tuple[type, ...]], ...] = (
    ("ultrachat", "conversation", "data", (list,)),
    ("preferences", "preference", "chosen", (list, str, dict)),
    ("prompt-completion messages", "preference", "completion", (list,)),
    ("self-instruct", "instances", "instances", (list,)),
)


@dataclass(frozen=True)
class Layout:
    """The layout of a dataset.

    Attributes
    ----------
    name, form:
        What was recognised, and how such records are read.
    fields:
        The column of each part.
    context:
        (part, column) of what may stand beside the text.
    bad:
        The column that says whether the answer is a good one.
    losses:
        What a user could miss, counted while records are read.
    """

    name: str
    form: Form
    fields: Columns
    section: DatasetSection
    context: tuple[tuple[str, str], ...]
    bad: str | None
    losses: Counter[str] = field(default_factory=Counter)

    def extract(self, record: dict[str, Any]) -> Texts:
        """Return instruction, input, response and turns of a record, or raise ``Unusable``."""
        if self.form == "columns":
            return self._from_columns(record)
        if self.form == "instances":
            return self._from_columns(self._first_instance(record))
        if self.form == "conversation":
            return self._from_messages(record)
        return self._from_preference(record)

    def _from_columns(self, record: dict[str, Any]) -> Texts:
        """Read a record with one column per part."""
        flat = self.form == "instances"
        asked = str(self.fields["instruction"])
        instruction = required_text(record, asked)
        given = optional_text(record, "input" if flat else self.fields["input"])
        if is_blank(instruction):
            if is_blank(given):
                raise Unusable(asked, "is blank")
            instruction, given = given, ""  # the question stands in the input alone
        self._refuse_bad(record)
        response = required_text(record, "output" if flat else str(self.fields["response"]))
        fixed, earlier = self._beside(record)
        if not (fixed or earlier):
            return instruction, given, response, 1
        if self.section.turns == "last-turn":
            earlier = [m for m in earlier if m.kind == SYSTEM]
        whole = joined([*fixed, *earlier, Message(USER, USER, instruction)])
        return whole, given, response, 1 + sum(m.kind == ASSISTANT for m in earlier)

    def _first_instance(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return self-instruct's form (an instruction, a list of worked instances) as columns."""
        instances = record.get("instances")
        if not isinstance(instances, list) or not instances:
            what = "is an empty list" if instances == [] else f"is {type_name(instances)}"
            raise Unusable("instances", what if "instances" in record else "is missing")
        if not isinstance(instances[0], dict):
            raise Unusable("instances[0]", f"is {type_name(instances[0])}, expected an object")
        if len(instances) > 1:
            self.losses["instances after the first were left out"] += 1
        return {**record, **{k: instances[0].get(k) for k in ("input", "output")}}

    def _from_messages(self, record: dict[str, Any]) -> Texts:
        """Read a record with a list of messages, and perhaps the preferred answer beside it."""
        key, chosen = str(self.fields["conversation"]), self.fields.get("response")
        messages = self._messages(record, key)
        self._refuse_bad(record)
        answer = self._answer(record, chosen) if chosen and found(record, chosen) else []
        return self._texts(record, [*messages, *answer], key)

    def _from_preference(self, record: dict[str, Any]) -> Texts:
        """Read trl's forms: a prompt (text or messages) and an answer (text or messages)."""
        prompt, answer = self.fields["instruction"], str(self.fields["response"])
        replies = self._answer(record, answer)
        if any(message.kind == USER for message in replies) or prompt is None:
            self._refuse_bad(record)
            return self._texts(record, replies, answer)  # the answer column is the conversation
        value = found(record, prompt)
        if isinstance(value, str) and value.lstrip()[:1] != "[":
            if is_blank(value):
                raise Unusable(prompt, "is blank")
            messages = [Message(USER, USER, value)]
        else:
            messages = self._messages(record, prompt)
        self._refuse_bad(record)
        return self._texts(record, [*messages, *replies], prompt)

    def _messages(self, record: dict[str, Any], column: str) -> list[Message]:
        value = found(record, column)
        return read_messages(value, column, self.section.roles, present=column in record)

    def _answer(self, record: dict[str, Any], column: str) -> list[Message]:
        """Return an answer that is text, one message or several."""
        value = found(record, column)
        if isinstance(value, str) and value.lstrip()[:1] != "[":
            return [Message(ASSISTANT, ASSISTANT, value)]
        return self._messages(record, column)

    def _refuse_bad(self, record: dict[str, Any]) -> None:
        """Leave out an answer that the data themselves call a bad one (KTO)."""
        if self.bad is not None and found(record, self.bad) in (False, "false", "False"):
            raise Excluded(self.bad, "says that the answer is a bad one")

    def _texts(self, record: dict[str, Any], messages: list[Message], where: str) -> Texts:
        """Return the texts of a conversation with what stands beside it."""
        fixed, earlier = self._beside(record)
        options = {"turns": self.section.turns, "other_roles": self.section.other_roles}
        return as_texts([*earlier, *messages], fixed, where, losses=self.losses, **options)

    def _beside(self, record: dict[str, Any]) -> tuple[list[Message], list[Message]]:
        """Return (system prompt, tools and images; earlier turns) of a record's columns."""
        fixed: list[Message] = []
        earlier: list[Message] = []
        for part, column in self.context:
            value = found(record, column)
            if value in _NOTHING or (isinstance(value, str) and is_blank(value)):
                continue
            if part == "history":
                earlier = read_messages(value, column, self.section.roles)
            elif part == "system":
                fixed.append(Message(SYSTEM, SYSTEM, required_text(record, column)))
            elif part == "tools" and value != "[]":
                text = json.dumps(value, ensure_ascii=False, default=str)
                fixed.append(Message("tools", OTHER, value if isinstance(value, str) else text))
            elif part == "images":
                images = value if isinstance(value, list) else [value]
                fixed.append(Message("images", OTHER, ", ".join(map(_image_name, images))))
                self.losses["images are named to the rater, not shown"] += 1
        return fixed, earlier


def _image_name(value: object) -> str:
    """Return how an image is called: its path or address, else a digest of what it is."""
    if isinstance(value, dict):
        value = value.get("path") or value.get("url") or value.get("bytes") or value
    return value[:200] if isinstance(value, str) else f"image {sha256_json(str(value))[:16]}"


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
    mapping, builder = section.columns, _Builder(section, samples)
    if mapping is not None and section.layout in {"auto", "columns"}:
        _check_mapping(mapping, samples, source)
        return builder.mapped(mapping)
    if section.layout == "alpaca":
        return builder.made("alpaca", "columns", builder.named(_PARTS, KNOWN_COLUMNS[0]))
    if section.layout in {"sharegpt", "messages"}:
        order = CONVERSATION_KEYS if section.layout == "sharegpt" else CONVERSATION_KEYS[1::-1]
        key = next((k for k in order if any(k in r for r in samples)), order[0])
        return builder.conversation(section.layout, key)
    fits, name, form, columns = max(builder.candidates(), key=lambda candidate: candidate[0])
    if fits and form == "conversation":
        return builder.conversation(name, str(columns["conversation"]))
    if fits:
        return builder.made(name, form, columns)
    names = {str(column) for record in samples for column in record}
    raise UserError(
        f"{source}: the record layout is not one that is recognised; columns found: "
        f"{column_list(names)}",
        hint=f"name the columns: dataset.columns: {{instruction: ..., response: ...}}"
        f"{_near_miss(names)}",
    )


class _Builder:
    """Makes layouts from the options and the first records."""

    def __init__(self, section: DatasetSection, samples: list[dict[str, Any]]) -> None:
        self.section = section
        self.samples = samples
        # column names as they are written, by their lower-case form; the most frequent wins
        counts = Counter(str(column) for record in samples for column in record)
        self.names = {name.lower(): name for name, _ in reversed(counts.most_common())}
        # a column `label` says this only beside trl's columns; anywhere else it may be anything
        labels = ("kto_tag", "label") if {"prompt", "completion"} <= set(self.names) else _LABELS
        self.bad = next((self.names[name] for name in labels if self._holds(name, (bool,))), None)

    def _holds(self, name: str, kinds: tuple[type, ...]) -> int:
        """Return in how many of the first records a column holds a value of these kinds."""
        column = self.names.get(name, name)
        return sum(isinstance(found(record, column), kinds) for record in self.samples)

    def named(self, parts: tuple[str, ...], columns: tuple[str | None, ...]) -> Columns:
        """Return the column of each part as the records write it."""
        return {p: n and self.names.get(n, n) for p, n in zip(parts, columns, strict=True)}

    def made(self, name: str, form: Form, columns: Columns) -> Layout:
        """Return a layout with the context columns that it does not use itself."""
        context = []
        for part, known in CONTEXT_COLUMNS.items():
            own = getattr(self.section.columns, part, None)
            names = [own] if own is not None else [self.names.get(n, n) for n in known]
            context += [(part, column) for column in names if column not in columns.values()]
        shown: Columns = {
            part: column
            for part, column in context
            if any(found(record, column) not in _NOTHING for record in self.samples)
        }
        return Layout(name, form, {**columns, **shown}, self.section, tuple(context), self.bad)

    def conversation(self, name: str, key: str) -> Layout:
        """Return the layout of a list of messages, with a preferred answer where there is one."""
        if not self._holds("chosen", (dict, list, str)):
            return self.made(name, "conversation", {"conversation": key})
        pair = {"response": self.names["chosen"], "rejected": self.names.get("rejected")}
        columns = {"conversation": key, **pair}
        return self.made(f"{name} with preferences", "conversation", columns)

    def mapped(self, mapping: ColumnMapping) -> Layout:
        """Return the layout that ``dataset.columns`` describes."""
        asked, given, answer = mapping.instruction, mapping.input, mapping.response
        if mapping.messages is not None:
            chosen = mapping.chosen or (answer if asked is None else None)
            columns = {"conversation": mapping.messages, "response": chosen}
            return self.made("columns", "conversation", {**columns, "rejected": mapping.rejected})
        if mapping.chosen is not None:
            columns = {"instruction": asked, "response": mapping.chosen}
            return self.made("columns", "preference", {**columns, "rejected": mapping.rejected})
        columns = {"instruction": asked, "input": given, "response": answer}
        return self.made("columns", "columns", columns)

    def candidates(self) -> Iterator[tuple[int, str, Form, Columns]]:
        """Yield how many of the first records fit each known layout, and its columns."""
        for key in CONVERSATION_KEYS:
            column = self.names.get(key, key)
            texts = (record.get(column) for record in self.samples)
            as_text = sum(isinstance(t, str) and t.lstrip()[:1] == "[" for t in texts)
            name = "messages" if key == "messages" else "sharegpt"
            fits = self._holds(key, (list, dict)) + as_text
            yield fits, name, "conversation", {"conversation": column}
        prompt = next((self.names[n] for n in _PROMPTS if n in self.names), None)
        for name, form, answer, kinds in _NESTED:
            columns = {"instruction": prompt, "response": self.names.get(answer, answer)}
            fits = self._holds(answer, kinds)
            if form == "conversation":
                columns = {"conversation": self.names.get(answer, answer)}
            elif form == "instances":
                columns["instruction"] = "instruction"
            elif answer == "chosen":
                columns["rejected"] = self.names.get("rejected")
                fits = fits if columns["rejected"] else 0
            yield fits, name, form, columns
        for known in KNOWN_COLUMNS:
            name = "alpaca" if known is KNOWN_COLUMNS[0] else "columns"
            given = known[1] if name == "alpaca" or known[1] in self.names else None
            columns = self.named(_PARTS, (known[0], given, known[2]))
            needed = columns["instruction"], columns["response"]
            fits = sum(all(column in record for column in needed) for record in self.samples)
            yield fits, name, "columns", columns


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
