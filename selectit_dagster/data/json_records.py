"""Records as JSON text: one parsed with its diagnosis, JSON Lines, and objects one by one.

A reader yields each record's bytes exactly as they lie in the file beside the parsed record or the
``Unusable`` that says why there is none. JSON Lines stream; a wrapper (``{"data": [...]}``) and
the objects that ``jq`` writes are read whole.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.conversations import ROLE_KEYS, TEXT_KEYS
from selectit_dagster.data.fields import (
    MAX_RECORD_BYTES,
    WHOLE_RECORD,
    Row,
    Unusable,
    too_big,
    type_name,
)
from selectit_dagster.errors import UserError

# what is read whole; larger files are better off as JSON Lines
_LARGEST = 1 << 30
_TOO_DEEP = "is nested too deeply"
MEND = "mend the file there, or make it again; JSON Lines survives a broken record"


class BrokenJson(Exception):  # noqa: N818 - says what the text is, not who failed
    """Text that is not JSON: the message and the offset in bytes where it goes wrong."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


def parse_record(raw: bytes) -> dict[str, Any] | Unusable:
    """Return the parsed record, or why the text is JSON but no usable record.

    Raises
    ------
    BrokenJson
        When the text is not JSON.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _diagnose(raw)
    if type(value) is dict:
        return value
    if type(value) is list and value and isinstance(value[0], dict | list):
        return {"conversations": value}  # a record that is its list of messages
    return Unusable(WHOLE_RECORD, f"is {type_name(value)}, expected an object")


def _diagnose(raw: bytes) -> Unusable:
    """Return why the strict parser refused ``raw``; raise ``BrokenJson`` when it is no JSON."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Unusable(WHOLE_RECORD, f"is not valid UTF-8 ({error.reason})")
    strict = _strict_error(text)
    try:
        value = json.loads(text, parse_constant=_Constant, strict=False)
    except json.JSONDecodeError as error:
        first = strict or error  # a quote left open shows at its line
        comma = text[: first.pos].rstrip().endswith(",") and text[first.pos : first.pos + 1] in "}]"
        what = "a comma before the closing bracket" if comma else first.msg
        raise BrokenJson(what, len(text[: first.pos].encode("utf-8"))) from error
    except RecursionError:
        return Unusable(WHOLE_RECORD, _TOO_DEEP)
    except ValueError:
        return Unusable(WHOLE_RECORD, "holds a number that is too long")
    what = "holds a control character that JSON wants escaped" if strict else _TOO_DEEP
    return _first_fault(value) or Unusable(WHOLE_RECORD, what)


def _strict_error(text: str) -> json.JSONDecodeError | None:
    """Return the first error under the letter of JSON."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    except (RecursionError, ValueError):
        pass
    return None


class _Constant(str):
    """NaN, Infinity or -Infinity: JSON has none of them."""


def _first_fault(value: object) -> Unusable | None:
    """Return the first constant or lone surrogate inside a parsed value, with its path."""
    stack: list[tuple[object, str]] = [(value, "")]
    while stack:
        item, path = stack.pop()
        where = path or WHOLE_RECORD
        if isinstance(item, _Constant):
            return Unusable(where, f"is {item}, which JSON does not have")
        if isinstance(item, float) and math.isinf(item):
            return Unusable(where, "is a number beyond what a computer's numbers reach")
        if isinstance(item, str) and re.search("[\ud800-\udfff]", item):
            return Unusable(where, "holds a lone surrogate, which is no character")
        if isinstance(item, dict):
            entries = [(v, f"{path}.{k}" if path else str(k)) for k, v in item.items()]
            stack.extend(reversed([*((k, path) for k in item), *entries]))
        elif isinstance(item, list):
            stack.extend(reversed([(v, f"{path}[{i}]") for i, v in enumerate(item)]))
    return None


def read_lines(source: ByteSource, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Row]:
    """Yield the records of a JSON Lines file; blank lines are no records.

    A line that is not JSON, or longer than ``max_bytes``, is an unusable record; the
    lines after it are read as usual.
    """
    for line, raw, _ in bounded_lines(source, max_bytes):
        if raw is None:
            yield Row(b"", too_big(max_bytes), line)
            continue
        try:
            value = orjson.loads(raw)
            if type(value) is dict:
                yield Row(raw, value, line)
                continue
        except orjson.JSONDecodeError:
            if not raw.strip():
                continue
        try:
            yield Row(raw, parse_record(raw), line)
        except BrokenJson as error:
            reason = f"is not JSON: {error.message} (column {error.offset + 1})"
            yield Row(raw, Unusable(WHOLE_RECORD, reason), line)


def bounded_lines(
    source: ByteSource, max_bytes: int, inside: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, bytes | None, int]]:
    """Yield each line's number, its bytes without the line feed, and the quotes in one left out.

    The bytes of a line above ``max_bytes`` are None. Blocks of blanks alone are only counted,
    unless ``inside`` says that a record goes on: a gigabyte of line feeds packs to a megabyte.
    """
    number, rest = 0, b""
    quotes: int | None = None  # in the line that is being skipped
    for block in source.blocks():
        text = rest + block
        if quotes is None and text.isspace() and b"\n" in text and not inside():
            number += text.count(b"\n")
            rest = text[text.rfind(b"\n") + 1 :]
            continue
        *lines, rest = text.split(b"\n")
        for line in lines:
            number += 1
            if quotes is None and len(line) <= max_bytes:
                yield number, line, 0
            else:
                yield number, None, (quotes or 0) + line.count(b'"')
            quotes = None
        if quotes is not None or len(rest) > max_bytes:
            rest, quotes = b"", (quotes or 0) + rest.count(b'"')
    if quotes is not None:
        yield number + 1, None, quotes
    elif rest:
        yield number + 1, rest, 0


def read_objects(
    source: ByteSource, split: str = "train", max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[Row]:
    """Yield the records of a file whose text begins with an object.

    ``{"version": 1, "data": [...]}`` gives the records of its one list (of several, the one called
    ``split``); objects one after the other, over as many lines as they like, are a record each.

    Raises
    ------
    UserError
        When the text is not JSON, with line and column, or holds several lists of records.
    """
    parts: list[bytes] = []
    for block in source.blocks():
        parts.append(block)
        if sum(map(len, parts)) > _LARGEST:
            raise UserError(
                f"{source.path} is one JSON text of more than {_LARGEST >> 30} GiB",
                hint="write it as JSON Lines or as a JSON array, which are read in pieces",
            )
    text = _Text(source, b"".join(parts).decode("utf-8", "surrogateescape"))
    spans = list(text.values(0, len(text.text)))
    if len(spans) == 1:
        spans = list(text.wrapped(*spans[0], split)) or spans
    line, at = 1, 0
    for start, end in spans:
        line += text.text.count("\n", at, start)
        at = start
        raw = text.text[start:end].encode("utf-8", "surrogateescape")
        big = len(raw) > max_bytes
        yield Row(b"", too_big(max_bytes), line) if big else Row(raw, parse_record(raw), line)


class _Text:
    """A JSON text that is held whole, and the places of the values in it."""

    _decoder = json.JSONDecoder(strict=False)

    def __init__(self, source: ByteSource, text: str) -> None:
        self.path = source.path
        self.text = text

    def value(self, at: int) -> tuple[Any, int]:
        """Return the value that starts at an offset, and where it ends."""
        try:
            return self._decoder.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.path}, line {error.lineno}, column {error.colno}: not valid JSON: "
                f"{error.msg}",
                hint=MEND,
            ) from error
        except RecursionError as error:
            raise UserError(
                f"{self.path}: the JSON text is nested too deeply",
                hint="write the records as JSON Lines",
            ) from error

    def values(self, at: int, stop: int, marks: str = ",") -> Iterator[tuple[int, int]]:
        """Yield where each value between two offsets starts and ends; marks may separate them."""
        first = re.compile(rf"[^ \t\r\n{marks}]")
        while (found := first.search(self.text, at, stop)) is not None:
            _, at = self.value(found.start())
            yield found.start(), at

    def wrapped(self, start: int, end: int, split: str) -> Iterator[tuple[int, int]]:
        """Yield the records of the one list of objects inside an object; nothing without one."""
        inside = list(self.values(start + 1, end - 1, ",:"))
        lists: dict[str, tuple[int, int]] = {}
        for key, (at, stop) in zip(inside[::2], inside[1::2], strict=False):
            value = self.value(at)[0]
            if isinstance(value, list) and value and isinstance(value[0], dict | list):
                if isinstance(value[0], dict) and _is_message(value[0]):
                    return  # the object is itself a record
                lists[str(self.value(key[0])[0])] = at, stop
        if not lists:
            return
        if len(lists) > 1 and split not in lists:
            raise UserError(
                f"{self.path} holds several lists of records: {', '.join(sorted(lists))}",
                hint="say which with dataset.split",
            )
        at, stop = lists.get(split) or next(iter(lists.values()))
        yield from self.values(at + 1, stop - 1)


def _is_message(entry: dict[str, Any]) -> bool:
    return any(key in entry for key in ROLE_KEYS) and any(key in entry for key in TEXT_KEYS)
