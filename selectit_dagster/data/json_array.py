"""Streaming reader of one JSON array, whatever lies between its elements.

The boundaries of the elements are found on whole blocks with numpy, and only then is each
element parsed; so its bytes are known exactly, and a broken array names line and column.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.fields import MAX_RECORD_BYTES, Row, too_big
from selectit_dagster.data.json_records import MEND, BrokenJson, parse_record
from selectit_dagster.errors import UserError

_BLANKS = b" \t\r\n"
_QUOTE, _BACKSLASH, _COMMA = 0x22, 0x5C, 0x2C
_OPEN, _CLOSE = 0x7B, 0x7D  # "[" and "]" are these with bit 5 cleared
_HEAD = 1 << 16  # bytes kept of an element that is too big, to say what is wrong with it


class _Structure:
    """Finds the commas between the elements of a JSON array and its end, block by block.

    Works on whole blocks with numpy: quotes that are not escaped tell what lies inside
    strings, and the depth of brackets tells which commas separate elements.
    """

    def __init__(self) -> None:
        self.in_string = 0
        self.backslashes = 0  # length of the run of backslashes that ends the block before
        self.depth = 0

    def scan(self, block: bytes) -> tuple[list[int], int | None]:
        """Return the positions of commas between elements, and of the array's end or None."""
        data = np.frombuffer(block, np.uint8)
        quotes = self._plain_quotes(data, block)
        folded = data | 0x20
        found = np.flatnonzero((folded == _OPEN) | (folded == _CLOSE) | (data == _COMMA))
        inside = (np.searchsorted(quotes, found) + self.in_string) & 1
        found = found[inside == 0]
        self.in_string = (self.in_string + len(quotes)) & 1
        kinds = folded[found]
        steps = (kinds == _OPEN).astype(np.int64) - (kinds == _CLOSE)
        depths = self.depth + np.cumsum(steps)
        self.depth = int(depths[-1]) if len(depths) else self.depth
        commas = found[(depths == 1) & (steps == 0)]
        ends = found[(depths <= 0) & (steps == -1)]
        end = int(ends[0]) if len(ends) else None
        return (commas if end is None else commas[commas < end]).tolist(), end

    def _plain_quotes(self, data: np.ndarray, block: bytes) -> np.ndarray:
        """Return the positions of quotes that no backslash escapes."""
        quotes = np.flatnonzero(data == _QUOTE)
        carried, self.backslashes = self.backslashes, 0
        slashes = np.flatnonzero(data == _BACKSLASH) if b"\\" in block else np.zeros(0, np.int64)
        escaped = np.zeros(len(quotes), bool)
        if len(slashes):
            breaks = np.flatnonzero(np.diff(slashes) != 1) + 1
            lengths = np.diff(np.concatenate(([0], breaks, [len(slashes)])))
            lasts = slashes[np.append(breaks, len(slashes)) - 1]
            if slashes[0] == 0:
                lengths[0] += carried
            if lasts[-1] == len(data) - 1:
                self.backslashes = int(lengths[-1])
            escaped = np.isin(quotes, lasts[(lengths & 1) == 1] + 1, assume_unique=True)
        if carried & 1 and len(quotes) and quotes[0] == 0:
            escaped[0] = True
        return quotes[~escaped]


def read_array(source: ByteSource, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Row]:
    """Yield the elements of one JSON array.

    Raises
    ------
    UserError
        When the text is not a JSON array of values, with the line and the column.
    """
    return _Array(source, max_bytes).rows()


class _Array:
    """The part of an array that is held: from the element that is not whole yet on."""

    def __init__(self, source: ByteSource, max_bytes: int) -> None:
        self.source = source
        self.max_bytes = max_bytes
        self.count = 0
        self.text = b""
        self.at = 0  # up to where the text was yielded
        self.line, self.column = 1, 1  # the line of that offset, the column of the text's start
        # the beginning of an element that is too big to be held, and its place
        self.head: tuple[bytes, int, int] | None = None

    def rows(self) -> Iterator[Row]:
        structure = _Structure()
        end: int | None = None
        started = False
        for block in self.source.blocks():
            seam = len(self.text)
            self.text += block
            if end is None:
                started = started or self._begin()
                commas, end = structure.scan(block)
                for comma in commas:
                    yield self._element(seam + comma)
                    self._go_to(seam + comma + 1)
                if end is not None:
                    yield from self._last(seam + end)
            if end is not None:
                self._only_blanks()
            self._let_go()
        if end is None:
            self._unfinished(started)

    def _place(self, at: int) -> tuple[int, int]:
        """Return line and column of an offset in the text."""
        feed = self.text.rfind(b"\n", 0, at)
        line = self.line + self.text.count(b"\n", self.at, at)
        return line, at - feed if feed >= 0 else self.column + at

    def _go_to(self, at: int) -> None:
        self.line += self.text.count(b"\n", self.at, at)
        self.at = at

    def _let_go(self) -> None:
        """Keep only what is not yielded yet, and of an element that is too big its beginning."""
        rest = len(self.text) - self.at
        if self.head is None and rest > self.max_bytes:
            self.head = self._beginning()
        if self.head is not None:
            self._go_to(len(self.text))
        self.column = self._place(self.at)[1]
        self.text, self.at = self.text[self.at :], 0

    def _beginning(self) -> tuple[bytes, int, int]:
        text = self.text[self.at : self.at + _HEAD]
        start = self.at + len(text) - len(text.lstrip(_BLANKS))
        return text.strip(_BLANKS), *self._place(start)

    def _begin(self) -> bool:
        """Step over what stands before the first element; tell whether the array began."""
        blanks = len(self.text) - len(self.text.lstrip(_BLANKS))
        if blanks == len(self.text):
            self._go_to(blanks)
            return False
        if self.text[blanks : blanks + 1] != b"[":
            line, column = self._place(blanks)
            raise UserError(
                f"{self.source.path}, line {line}, column {column}: not a JSON array of records",
                hint="a JSON dataset is one array: [{...}, {...}]; one object a line is "
                "format: jsonl",
            )
        self._go_to(blanks + 1)
        return True

    def _element(self, stop: int, *, last: bool = False) -> Row:
        """Return the element that ends at an offset."""
        self.count += 1
        piece = self.text[self.at : stop]
        if self.head is not None or len(piece) > self.max_bytes:
            line = (self.head or self._beginning())[1]
            self.head = None
            return Row(b"", too_big(self.max_bytes), line)
        raw = piece.strip(_BLANKS)
        start = self.at + len(piece) - len(piece.lstrip(_BLANKS))
        line = self.line + self.text.count(b"\n", self.at, start)
        try:
            value = orjson.loads(raw)
            if type(value) is dict:
                return Row(raw, value, line)
        except orjson.JSONDecodeError:
            pass
        if not raw:
            what = "a comma before the closing bracket" if last else "a comma without a value"
            raise self._broken(what, *self._place(stop))
        try:
            return Row(raw, parse_record(raw), line)
        except BrokenJson as error:
            raise self._broken(error.message, *self._place(start + error.offset)) from error

    def _last(self, end: int) -> Iterator[Row]:
        """Yield the element before the end of the array, where there is one."""
        if self.count or self.head or self.text[self.at : end].strip(_BLANKS):
            yield self._element(end, last=True)
        if self.text[end : end + 1] != b"]":
            raise self._broken("the array is closed by '}'", *self._place(end))
        self._go_to(end + 1)

    def _only_blanks(self) -> None:
        if rest := self.text[self.at :].lstrip(_BLANKS):
            place = self._place(len(self.text) - len(rest))
            raise self._broken("text after the end of the array", *place)
        self._go_to(len(self.text))

    def _unfinished(self, started: bool) -> None:
        """Raise for a file that ends before its array does."""
        if not started:
            raise UserError(
                f"{self.source.path} holds no JSON array: only blanks",
                hint="give a file with records",
            )
        text, line, column = self.head or self._beginning()
        try:
            parse_record(text or b"0")
        except BrokenJson as error:
            if error.offset < len(text) and "Unterminated" not in error.message:
                self.text, self.at, self.line, self.column = text, 0, line, column
                raise self._broken(error.message, *self._place(error.offset)) from error
        raise self._broken("the file ends before the array does", *self._place(len(self.text)))

    def _broken(self, message: str, line: int, column: int) -> UserError:
        return UserError(
            f"{self.source.path}, line {line}, column {column}: not valid JSON, in or after "
            f"record {self.count:,}: {message}",
            hint=MEND,
        )
