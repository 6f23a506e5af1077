"""Streaming reader of CSV and TSV: quoted fields may span lines; each row keeps its own text."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from typing import Any

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.fields import MAX_RECORD_BYTES, WHOLE_RECORD, Row, Unusable, too_big
from selectit_dagster.data.json_records import bounded_lines
from selectit_dagster.data.layouts import KNOWN_COLUMNS, column_list
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ColumnMapping

_DELIMITERS = (",", ";", "\t", "|")
_KNOWN = {column for known in KNOWN_COLUMNS for column in known if column} | {"id"}


class CsvReader:
    """Yields the rows of a CSV file with a header.

    Bytes that are not UTF-8 survive in ``raw``; the record is named as unusable.

    Attributes
    ----------
    details:
        What a writer needs to write rows back, once the header was read: its text and columns, the
        delimiter, the line ending and whether the file has a byte order mark.

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
        self.details: dict[str, Any] = {}
        self._text = bytearray()  # the lines of the current row
        self._start = 1  # the line on which it starts
        self._overlong = False

    def _lines(self) -> Iterator[str]:
        """Yield lines with their ends; blank ones between rows are no rows."""
        lines = bounded_lines(self.source, self.max_bytes, lambda: bool(self._text))
        for number, line, quotes in lines:
            if not self._text:
                self._start, self._overlong = number, line is None
                if line is not None and not line.strip():
                    continue
            if line is None and (self._text or quotes % 2):
                raise self._unclosed()
            line = b"x" if line is None else line  # a stand-in for one that is too long to be held
            self._text += line + b"\n"
            if len(self._text) > self.max_bytes + 1:
                raise self._unclosed()
            yield line.decode("utf-8", "surrogateescape") + "\n"

    def _taken(self) -> bytes:
        """Return the current row's text and begin the next one."""
        text, self._text = bytes(self._text.rstrip(b"\r\n")), bytearray()
        return text

    def __iter__(self) -> Iterator[Row]:
        csv.field_size_limit(self.max_bytes)
        lines = self._lines()
        columns, delimiter = self._header(lines)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            value: dict[str, Any] | Unusable
            try:
                row = next(rows, None)
                if row is None:
                    return
                value = dict(zip(columns, row, strict=False))
                if len(row) != len(columns):
                    reason = f"has {len(row)} columns, the header has {len(columns)}"
                    value = Unusable(WHOLE_RECORD, reason)
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise self._unclosed() from error
                value = Unusable(WHOLE_RECORD, f"is not valid CSV: {error}")
            raw = self._taken()
            if self._overlong:
                raw, value = b"", too_big(self.max_bytes)
            yield Row(raw, value, self._start)

    def _unclosed(self) -> UserError:
        return UserError(
            f"{self.source.path}: a quote in the row that starts on line {self._start} "
            f"is never closed, or not within {self.max_bytes:,} bytes",
            hint="close the quote; a quote inside a quoted field is written twice",
        )

    def _header(self, lines: Iterator[str]) -> tuple[list[str], str]:
        """Read the header with each delimiter; return its columns by the one that fits best."""
        text = next(lines, "")
        # a header field may span lines as well
        while text.count('"') % 2 and (more := next(lines, "")):
            text += more
        if self._overlong:
            raise UserError(
                f"{self.source.path}, line 1: the CSV header is longer than "
                f"{self.max_bytes:,} bytes",
                hint="the first line of a CSV file names its columns, each once",
            )
        if text.count('"') % 2:
            raise self._unclosed()
        wanted = set(_KNOWN)
        if self.mapping is not None:
            wanted |= {str(column) for column in self.mapping.model_dump().values() if column}
        tries: dict[str, list[str]] = {}
        for mark in _DELIMITERS:
            with contextlib.suppress(csv.Error):
                tries[mark] = next(csv.reader([text], delimiter=mark), [])
        if not tries:
            # what is still refused is a return outside quotes
            raise UserError(
                f"{self.source.path}, line 1: the CSV header has bare carriage returns: the lines "
                "end as on an old Macintosh",
                hint="write the file again with line feeds (\\n or \\r\\n) at the line ends",
            )
        delimiter = max(
            tries, key=lambda mark: (len(wanted & set(tries[mark])), len(tries[mark]) > 1)
        )
        columns = tries[delimiter]
        if len(set(columns)) != len(columns) or not any(columns):
            raise UserError(
                f"{self.source.path}, line 1: the CSV header names a column twice or none: "
                f"{column_list(columns)[:200]}",
                hint="the first line of a CSV file names its columns, each once",
            )
        self.details |= {
            "header": self._taken().decode("utf-8", "surrogateescape"),
            "columns": columns,
            "delimiter": delimiter,
            "line_ending": "\r\n" if text.endswith("\r\n") else "\n",
            "byte_order_mark": self.source.marked,
        }
        return columns, delimiter
