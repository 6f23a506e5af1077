"""Streaming reader of one JSON array, whatever lies between its elements.

The boundaries of the elements are found on whole blocks with numpy, and only then is each
element parsed; so its bytes are known exactly, and a broken array names line and column.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.json_reader import (
    MAX_RECORD_BYTES,
    BrokenJson,
    Row,
    parse_record,
    too_big,
)
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

    def scan(self, block: bytes) -> tuple[np.ndarray, np.ndarray, int | None]:
        """Return (positions of ``[`` at the root, commas between elements, end or None)."""
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
        starts = found[(depths == 1) & (steps == 1)]
        commas = found[(depths == 1) & (steps == 0)]
        ends = found[(depths <= 0) & (steps == -1)]
        self.depth = int(depths[-1]) if len(depths) else self.depth
        end = int(ends[0]) if len(ends) else None
        return starts, commas if end is None else commas[commas < end], end

    def _plain_quotes(self, data: np.ndarray, block: bytes) -> np.ndarray:
        """Return the positions of quotes that no backslash escapes."""
        quotes = np.flatnonzero(data == _QUOTE)
        carried, self.backslashes = self.backslashes, 0
        slashes = np.flatnonzero(data == _BACKSLASH) if b"\\" in block else None
        if slashes is None or not len(slashes):
            if carried & 1 and len(quotes) and quotes[0] == 0:
                return quotes[1:]
            return quotes
        breaks = np.flatnonzero(np.diff(slashes) != 1) + 1
        firsts = np.concatenate(([0], breaks))
        lengths = np.diff(np.append(firsts, len(slashes)))
        lasts = slashes[np.append(breaks, len(slashes)) - 1]
        if slashes[0] == 0:
            lengths[0] += carried
        if lasts[-1] == len(data) - 1:
            self.backslashes = int(lengths[-1])
        odd_ends = lasts[(lengths & 1) == 1] + 1
        escaped = np.isin(quotes, odd_ends, assume_unique=True)
        if carried & 1 and slashes[0] != 0 and len(quotes) and quotes[0] == 0:
            escaped[0] = True
        return quotes[~escaped]


class _Position:
    """Line and column of places in a stream, found by counting line feeds only when asked."""

    def __init__(self) -> None:
        self.block = b""
        self.known = 0  # offset in the block of the place that line and column belong to
        self.line, self.column = 1, 1

    def enter(self, block: bytes) -> None:
        """Go on with the next block."""
        self.find(len(self.block))
        self.block, self.known = block, 0

    def find(self, offset: int) -> tuple[int, int]:
        """Return line and column of ``offset``; offsets must not decrease."""
        self.line, self.column = step_over(self.block[self.known : offset], self.line, self.column)
        self.known = max(self.known, offset)
        return self.line, self.column


def step_over(text: bytes, line: int, column: int) -> tuple[int, int]:
    """Return the line and column after ``text`` that starts at ``line`` and ``column``."""
    feeds = text.count(b"\n")
    if feeds:
        return line + feeds, len(text) - text.rindex(b"\n")
    return line, column + len(text)


def _lead(text: bytes) -> int:
    """Return how many blanks ``text`` starts with."""
    return len(text) - len(text.lstrip(_BLANKS))


class ArrayReader:
    """Yields the elements of one JSON array.

    Raises
    ------
    UserError
        When the text is not a JSON array of values, with the line and the column.
    """

    def __init__(self, source: ByteSource, max_bytes: int = MAX_RECORD_BYTES) -> None:
        self.source = source
        self.max_bytes = max_bytes
        self.count = 0
        self._position = _Position()
        self._started = self._ended = False
        # an element that began in an earlier block: its pieces, size, place and first bytes
        self._parts: list[bytes] = []
        self._held = 0
        self._skipping = False
        self._head = b""
        self._head_at = (1, 1)
        self._last: tuple[bytes, int | tuple[int, int]] = (b"", (1, 1))

    @property
    def line(self) -> int:
        """The line on which the record yielded last starts."""
        whole, place = self._last
        line, column = self._position.find(place) if isinstance(place, int) else place
        return step_over(whole[: _lead(whole)], line, column)[0]

    def __iter__(self) -> Iterator[Row]:
        structure = _Structure()
        for block in self.source.blocks():
            self._position.enter(block)
            if self._ended:
                self._only_blanks(block, 0)
                continue
            starts, commas, end = structure.scan(block)
            at = 0
            if not self._started:
                at = self._begin(block, starts)
                if not self._started:
                    continue
            for comma in commas.tolist():
                yield self._element(block[at:comma], at, last=False)
                at = comma + 1
            if end is None:
                self._hold(block[at:], at)
                continue
            if self.count or self._held or block[at:end].strip(_BLANKS):
                yield self._element(block[at:end], at, last=True)
            if block[end : end + 1] != b"]":
                raise self._broken("the array is closed by '}'", *self._position.find(end))
            self._ended = True
            self._only_blanks(block, end + 1)
        if not self._ended:
            self._unfinished()

    def _begin(self, block: bytes, starts: np.ndarray) -> int:
        """Step over what stands before the first element; return where that starts."""
        blanks = _lead(block)
        if blanks < len(block) and (block[blanks : blanks + 1] != b"[" or not len(starts)):
            line, column = self._position.find(blanks)
            raise UserError(
                f"{self.source.path}, line {line}, column {column}: not a JSON array of records",
                hint="a JSON dataset is one array: [{...}, {...}]; one object a line is "
                "format: jsonl",
            )
        self._started = blanks < len(block)
        return blanks + 1

    def _hold(self, piece: bytes, at: int) -> None:
        """Keep a piece of an element that goes on in the next block."""
        if not self._held:
            self._head_at = self._position.find(at)
            self._head = b""
        self._head += piece[: max(0, _HEAD - len(self._head))]
        self._held += len(piece)
        if self._held > self.max_bytes:
            self._parts, self._skipping = [], True
        else:
            self._parts.append(piece)

    def _element(self, piece: bytes, at: int, *, last: bool) -> Row:
        """Return the element that ``piece``, which starts at ``at`` in the block, completes."""
        place: int | tuple[int, int] = at
        if self._held or len(piece) > self.max_bytes:
            self._hold(piece, at)
            piece, place, skipped = b"".join(self._parts), self._head_at, self._skipping
            self._parts, self._held, self._skipping = [], 0, False
            if skipped:
                self.count += 1
                self._last = (self._head, place)
                return b"", too_big(self.max_bytes)
        self._last = (piece, place)
        self.count += 1
        raw = piece.strip(_BLANKS)
        try:
            value = orjson.loads(raw)
            if type(value) is dict:
                return raw, value
        except orjson.JSONDecodeError:
            pass
        start = self._position.find(place) if isinstance(place, int) else place
        if not raw:
            what = "a comma before the closing bracket" if last else "a comma without a value"
            raise self._broken(what, *step_over(piece, *start))
        try:
            return raw, parse_record(raw)
        except BrokenJson as error:
            inside = piece[: _lead(piece) + error.offset]
            raise self._broken(error.message, *step_over(inside, *start)) from error

    def _only_blanks(self, block: bytes, at: int) -> None:
        rest = block[at:]
        if rest.strip(_BLANKS):
            place = self._position.find(at + _lead(rest))
            raise self._broken("text after the end of the array", *place)

    def _unfinished(self) -> None:
        """Raise for a file that ends before its array does."""
        end = self._position.find(len(self._position.block))
        if not self._started:
            raise UserError(
                f"{self.source.path} holds no JSON array: only blanks",
                hint="give a file with records",
            )
        text = self._head.strip(_BLANKS)
        if self._held and text:
            try:
                parse_record(text)
            except BrokenJson as error:
                if error.offset < len(text) and "Unterminated" not in error.message:
                    inside = self._head[: _lead(self._head) + error.offset]
                    place = step_over(inside, *self._head_at)
                    raise self._broken(error.message, *place) from error
        raise self._broken("the file ends before the array does", *end)

    def _broken(self, message: str, line: int, column: int) -> UserError:
        return UserError(
            f"{self.source.path}, line {line}, column {column}: not valid JSON, in or after "
            f"record {self.count:,}: {message}",
            hint="mend the file there, or make it again; JSON Lines survives a broken record",
        )
