"""Streaming reader of CSV: quoted fields may span lines, and every row keeps its own text."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.fields import WHOLE_RECORD, Unusable
from selectit_dagster.data.json_reader import MAX_RECORD_BYTES, Row, too_big
from selectit_dagster.data.layouts import KNOWN_COLUMNS, column_list
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ColumnMapping

_DELIMITERS = (",", ";", "\t", "|")
_KNOWN = {column for known in KNOWN_COLUMNS for column in known if column} | {"id"}


@dataclass(frozen=True)
class CsvShape:
    """What a writer needs to write rows back: header text, delimiter and line ending."""

    header: str
    columns: tuple[str, ...]
    delimiter: str
    line_ending: str


class CsvReader:
    """Yields the rows of a CSV file with a header, each with its text as it was read.

    Bytes that are not UTF-8 survive in ``raw``; the record is named as unusable.

    Raises
    ------
    UserError
        When there is no usable header, or a quote is never closed.
    """

    def __init__(
        self,
        source: ByteSource,
        mapping: ColumnMapping | None = None,
        max_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self.source = source
        self.max_bytes = max_bytes
        self.mapping = mapping
        self.shape: CsvShape | None = None
        self.line = 0  # on which the row yielded last starts
        self._lines_read = 0
        self._consumed = bytearray()  # the text of the current row, as it was read
        self._held = 0
        self._overlong = False

    def _lines(self) -> Iterator[str]:
        """Yield lines with their ends; remember those that the current row consumed."""
        rest, quotes, overlong = b"", 0, False
        for block in self.source.blocks():
            if not overlong and len(rest) <= 1 and self._is_blank(rest + block):
                rest = self._passed_over(rest + block)
                continue
            *whole, last = block.split(b"\n")
            for line in whole:
                line = rest + line
                rest = b""
                if overlong or len(line) > self.max_bytes:
                    yield self._dropped(quotes + line.count(b'"'))
                    quotes, overlong = 0, False
                else:
                    yield self._taken(line + b"\n")
            rest += last
            if len(rest) > self.max_bytes:
                quotes, rest, overlong = quotes + rest.count(b'"'), b"", True
        if overlong:
            yield self._dropped(quotes + rest.count(b'"'))
        elif rest:
            yield self._taken(rest)

    def _is_blank(self, block: bytes) -> bool:
        """Tell whether a block between two rows holds line ends alone.

        A gigabyte of them packs to a megabyte: they are counted, not read one by one.
        """
        return not self._held and not block.strip(b"\r\n") and b"\r\r" not in block

    def _passed_over(self, block: bytes) -> bytes:
        """Count the lines of a blank block; return the half of a line end that it ends in."""
        self._lines_read += block.count(b"\n")
        self.line = self._lines_read + 1
        return b"\r" if block.endswith(b"\r") else b""

    def _taken(self, line: bytes) -> str:
        self._lines_read += 1
        self._held += len(line)
        if self._held > self.max_bytes + 1:
            raise self._unclosed()
        self._consumed += line
        return line.decode("utf-8", "surrogateescape")

    def _dropped(self, quotes: int) -> str:
        """Return a stand-in for a line that is too long to be held."""
        self._lines_read += 1
        if quotes % 2 or self._held:
            raise self._unclosed()
        self._overlong = True
        return "x\n"

    def __iter__(self) -> Iterator[Row]:
        csv.field_size_limit(self.max_bytes)
        lines = self._lines()
        self.shape = self._header(lines)
        columns, width = self.shape.columns, len(self.shape.columns)
        rows = csv.reader(lines, delimiter=self.shape.delimiter, strict=True)
        while True:
            self.line = self._lines_read + 1
            self._consumed, self._held, self._overlong = bytearray(), 0, False
            fault: Unusable | None = None
            row: list[str] = []
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise self._unclosed() from error
                fault = Unusable(WHOLE_RECORD, f"is not valid CSV: {error}")
            raw = bytes(self._consumed.rstrip(b"\r\n"))
            if self._overlong:
                yield b"", too_big(self.max_bytes)
            elif fault is not None:
                yield raw, fault
            elif len(row) == width:
                yield raw, dict(zip(columns, row, strict=True))
            elif row:
                reason = f"has {len(row)} columns, the header has {width}"
                yield raw, Unusable(WHOLE_RECORD, reason)

    def _unclosed(self) -> UserError:
        return UserError(
            f"{self.source.path}: a quote in the row that starts on line {self.line} "
            f"is never closed, or not within {self.max_bytes:,} bytes",
            hint="close the quote; a quote inside a quoted field is written twice",
        )

    def _bare_returns(self) -> UserError:
        return UserError(
            f"{self.source.path}, line 1: the CSV header has bare carriage returns: the lines end "
            "as on an old Macintosh",
            hint="write the file again with line feeds (\\n or \\r\\n) at the line ends",
        )

    def _check_header(self, text: str) -> None:
        """Refuse what cannot be a header, before anything is made of it."""
        if self._overlong:
            raise UserError(
                f"{self.source.path}, line 1: the CSV header is longer than "
                f"{self.max_bytes:,} bytes",
                hint="the first line of a CSV file names its columns, each once",
            )
        if text.count('"') % 2:
            raise self._unclosed()
        if "\r" in text.rstrip("\r\n") and '"' not in text:
            raise self._bare_returns()

    def _header(self, lines: Iterator[str]) -> CsvShape:
        """Read the header with each delimiter and keep the one that names known columns."""
        self.line = 1
        wanted = set(_KNOWN)
        if self.mapping is not None:
            wanted |= {str(column) for column in self.mapping.model_dump().values() if column}
        text = ""
        for text in lines:
            if text.strip():
                break
            self._consumed, self._held = bytearray(), 0
        # a header field may span lines as well
        while text.count('"') % 2 and (more := next(lines, "")):
            text += more
        self._check_header(text)
        tries: dict[str, list[str]] = {}
        for mark in _DELIMITERS:
            # of all that csv refuses only a return outside quotes can still be there, and what
            # is outside quotes depends on the delimiter
            with contextlib.suppress(csv.Error):
                tries[mark] = next(csv.reader(io.StringIO(text, newline="\n"), delimiter=mark), [])
        if not tries:
            raise self._bare_returns()
        delimiter = max(
            tries, key=lambda mark: (len(wanted & set(tries[mark])), len(tries[mark]) > 1)
        )
        columns = tuple(tries[delimiter])
        if len(set(columns)) != len(columns) or not any(columns):
            raise UserError(
                f"{self.source.path}, line 1: the CSV header names a column twice or none: "
                f"{column_list(columns)[:200]}",
                hint="the first line of a CSV file names its columns, each once",
            )
        ending = "\r\n" if text.endswith("\r\n") else "\n"
        return CsvShape(text.rstrip("\r\n"), columns, delimiter, ending)
