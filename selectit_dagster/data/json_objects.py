"""Reader of JSON objects that are neither an array nor a line each: ``jq``'s output, wrappers.

``{"version": 1, "data": [...]}`` gives the records of its one list; objects one after the other,
over as many lines as they like, are a record each. Every record keeps its own bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.json_reader import MAX_RECORD_BYTES, Row, parse_record, too_big
from selectit_dagster.errors import UserError

# what is read whole; larger files are better off as JSON Lines
_LARGEST = 1 << 30
_BLANK = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n,]*")


class ObjectReader:
    """Yields the records of a file whose text begins with an object.

    Raises
    ------
    UserError
        When the text is not JSON, with line and column, or holds no list of records, or several.
    """

    def __init__(
        self, source: ByteSource, split: str = "train", max_bytes: int = MAX_RECORD_BYTES
    ) -> None:
        self.source = source
        self.split = split
        self.max_bytes = max_bytes
        self.line = 0
        self._decoder = json.JSONDecoder(strict=False)

    def __iter__(self) -> Iterator[Row]:
        parts, held = [], 0
        for block in self.source.blocks():
            parts.append(block)
            held += len(block)
            if held > _LARGEST:
                raise UserError(
                    f"{self.source.path} is one JSON text of more than {_LARGEST >> 30} GiB",
                    hint="write it as JSON Lines or as a JSON array, which are read in pieces",
                )
        text = b"".join(parts).decode("utf-8", "surrogateescape")
        spans = list(self._spans(text))
        if len(spans) == 1:
            spans = list(self._wrapped(text, *spans[0])) or spans
        line, at = 1, 0
        for start, end in spans:
            line += text.count("\n", at, start)
            self.line, at = line, start
            raw = text[start:end].encode("utf-8", "surrogateescape")
            yield (
                (b"", too_big(self.max_bytes))
                if len(raw) > self.max_bytes
                else (
                    raw,
                    parse_record(raw),
                )
            )

    def _value(self, text: str, at: int) -> tuple[Any, int]:
        try:
            return self._decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.source.path}, line {error.lineno}, column {error.colno}: not valid JSON: "
                f"{error.msg}",
                hint="mend the file there, or make it again; JSON Lines survives a broken record",
            ) from error
        except RecursionError as error:
            raise UserError(
                f"{self.source.path}: the JSON text is nested too deeply",
                hint="write the records as JSON Lines",
            ) from error

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where each value of a stream of values starts and ends."""
        at = _end(_BLANK, text, 0)
        while at < len(text):
            _, end = self._value(text, at)
            yield at, end
            at = _end(_BETWEEN, text, end)

    def _wrapped(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the records of the one list of objects inside an object; nothing without one."""
        lists: dict[str, tuple[int, int]] = {}
        at = _end(_BLANK, text, start + 1)
        while at < end and text[at] == '"':
            key, at = self._value(text, at)
            at = _end(_BLANK, text, at) + 1  # the colon
            at = _end(_BLANK, text, at)
            value, stop = self._value(text, at)
            if isinstance(value, list) and value and isinstance(value[0], dict | list):
                lists[str(key)] = at, stop
            at = _end(_BETWEEN, text, stop)
        whole = self._value(text, start)[0]
        if not lists or _is_record(whole, lists):
            return
        name = self.split if self.split in lists else next(iter(lists))
        if len(lists) > 1 and name != self.split:
            raise UserError(
                f"{self.source.path} holds several lists of records: {', '.join(sorted(lists))}",
                hint="say which with dataset.split",
            )
        at, stop = lists[name]
        at = _end(_BLANK, text, at + 1)
        while at < stop - 1:
            _, after = self._value(text, at)
            yield at, after
            at = _end(_BETWEEN, text, after)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _is_record(value: dict[str, Any], lists: dict[str, tuple[int, int]]) -> bool:
    """Tell whether a single object is itself a record: its lists are messages of it."""
    from selectit_dagster.data.conversations import ROLE_KEYS, TEXT_KEYS

    for name in lists:
        first = value[name][0]
        if not isinstance(first, dict):
            continue
        if any(key in first for key in ROLE_KEYS) and any(key in first for key in TEXT_KEYS):
            return True
    return False
