"""Records as JSON text, and the streaming reader of JSON Lines.

This reader and that of JSON arrays (``json_array``) yield ``(raw, value)``: the record's
bytes exactly as they lie in the file, and the parsed record or the ``Unusable`` that says why
there is none. ``reader.line`` is the line on which the record yielded last starts; it is worked
out only when it is asked for. Memory is bounded by one block and one record of at most
``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import orjson

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.fields import WHOLE_RECORD, Unusable, type_name

MAX_RECORD_BYTES = 16 << 20
_TOO_DEEP = "is nested too deeply"
Row = tuple[bytes, "dict[str, Any] | Unusable"]


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
    try:
        value = json.loads(text, parse_constant=_Constant, strict=False)
    except json.JSONDecodeError as error:
        first = _strict_error(text) or error
        comma = text[: first.pos].rstrip().endswith(",") and text[first.pos : first.pos + 1] in "}]"
        what = "a comma before the closing bracket" if comma else first.msg
        raise BrokenJson(what, len(text[: first.pos].encode("utf-8"))) from error
    except RecursionError:
        return Unusable(WHOLE_RECORD, _TOO_DEEP)
    except ValueError:
        return Unusable(WHOLE_RECORD, "holds a number that is too long")
    if (fault := _first_fault(value, WHOLE_RECORD)) is not None:
        return fault
    unescaped = _strict_error(text) is not None
    what = "holds a control character that JSON wants escaped" if unescaped else _TOO_DEEP
    return Unusable(WHOLE_RECORD, what)


def _strict_error(text: str) -> json.JSONDecodeError | None:
    """Return the first error under the letter of JSON: a quote left open shows at its line."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    except (RecursionError, ValueError):
        pass
    return None


class _Constant(str):
    """NaN, Infinity or -Infinity: JSON has none of them."""


def _first_fault(value: object, where: str) -> Unusable | None:
    """Return the first constant or lone surrogate inside a parsed value, with its path."""
    stack: list[tuple[object, str]] = [(value, where)]
    while stack:
        item, path = stack.pop()
        inner = "" if path == WHOLE_RECORD else path
        if isinstance(item, _Constant):
            return Unusable(path, f"is {item}, which JSON does not have")
        if isinstance(item, float) and math.isinf(item):
            return Unusable(path, "is a number beyond what a computer's numbers reach")
        if isinstance(item, str):
            if any("\ud800" <= character <= "\udfff" for character in item):
                return Unusable(path, "holds a lone surrogate, which is no character")
        elif isinstance(item, dict):
            entries = [(v, f"{inner}.{k}" if inner else str(k)) for k, v in item.items()]
            stack.extend(reversed([*((k, path) for k in item), *entries]))
        elif isinstance(item, list):
            stack.extend(reversed([(v, f"{inner}[{i}]") for i, v in enumerate(item)]))
    return None


class LineReader:
    """Yields the records of a JSON Lines file; blank lines are no records.

    A line that is not JSON, or longer than ``max_bytes``, is an unusable record; the
    lines after it are read as usual.
    """

    def __init__(self, source: ByteSource, max_bytes: int = MAX_RECORD_BYTES) -> None:
        self.source = source
        self.max_bytes = max_bytes
        self.line = 0

    def __iter__(self) -> Iterator[Row]:
        for raw in self._bounded_lines():
            self.line += 1
            if not raw:
                if raw is None:
                    yield b"", too_big(self.max_bytes)
                continue
            try:
                value = orjson.loads(raw)
                if type(value) is dict:
                    yield raw, value
                    continue
            except orjson.JSONDecodeError:
                pass
            if not raw.strip():
                continue
            try:
                yield raw, parse_record(raw)
            except BrokenJson as error:
                reason = f"is not JSON: {error.message} (column {error.offset + 1})"
                yield raw, Unusable(WHOLE_RECORD, reason)

    def _bounded_lines(self) -> Iterator[bytes | None]:
        """Yield each line without its line feed, or None for one that is too long.

        Blocks of blanks alone are only counted: a gigabyte of line feeds packs to a megabyte.
        """
        parts: list[bytes] = []
        held, skipping = 0, False
        for block in self.source.blocks():
            if not (held or skipping) and block.isspace() and (end := block.rfind(b"\n")) >= 0:
                self.line += block.count(b"\n")
                parts, held = [block[end + 1 :]], len(block) - end - 1
                continue
            first, *rest = block.split(b"\n")
            if not skipping:
                parts.append(first)
                held += len(first)
                if held > self.max_bytes:
                    parts, held, skipping = [], 0, True
            if not rest:
                continue
            yield None if skipping else b"".join(parts)
            *whole, last = rest
            for line in whole:
                yield line if len(line) <= self.max_bytes else None
            parts, held, skipping = [last], len(last), False
        if skipping or held:
            yield None if skipping or held > self.max_bytes else b"".join(parts)


def too_big(max_bytes: int) -> Unusable:
    """Return the reason for a record above the limit."""
    size = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes} bytes"
    return Unusable(WHOLE_RECORD, f"is larger than {size}")
