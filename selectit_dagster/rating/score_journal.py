"""The journal of a chunk in progress: each finished batch is one line, appended at once.

A process that is killed loses the batches in flight and nothing else. A line carries its
checksum, so one that was cut short ends the reading instead of spoiling it.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_SYNC_SECONDS = 2.0
_KEY = re.compile(r"[0-9a-f]{16,128}")
# a distribution adds up to one within the digits of float32
_OFF_BY = 1e-3


def journal_name(index: int) -> str:
    """Return the name of the journal of the chunk with that number."""
    return f"journal-{index:06d}.jsonl"


@dataclass(frozen=True)
class JournalRow:
    """One rated row: where it belongs, what it is known by, and what came out."""

    record: int
    prompt: int
    key: str
    probabilities: list[float] | None
    rating_mass: float | None
    reason: str | None


class Journal:
    """Appends batches of rated rows to a file.

    Parameters
    ----------
    path:
        The journal; an existing one is continued after its last whole line.
    engine:
        Digest of the settings under which rows are comparable.
    prompts:
        (K,) digests of the rating prompts.
    """

    def __init__(self, path: Path, engine: str, prompts: list[str]) -> None:
        self.path = path
        whole = _whole_bytes(path)
        self.handle: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self.handle.truncate(whole)
        self.handle.seek(whole)
        self.synced_at = time.monotonic()
        if not whole:
            self._write({"engine": engine, "prompts": prompts})

    def append(self, rows: list[JournalRow]) -> None:
        """Write one batch; flushed to the kernel at once, to the disk every two seconds."""
        values = [
            [row.record, row.prompt, row.key, row.probabilities, row.rating_mass, row.reason]
            for row in rows
        ]
        self._write({"rows": values})

    def _write(self, value: dict[str, Any]) -> None:
        body = json.dumps(value, allow_nan=False).encode()
        self.handle.write(b"%08x %s\n" % (zlib.crc32(body), body))
        self.handle.flush()
        if time.monotonic() - self.synced_at > _SYNC_SECONDS:
            os.fsync(self.handle.fileno())
            self.synced_at = time.monotonic()

    def close(self) -> None:
        """Close the file; it stays where it is."""
        self.handle.close()

    def remove(self) -> None:
        """Close and delete the file: its rows are in a part now."""
        self.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class JournalContent:
    """What a journal holds."""

    engine: str
    prompts: list[str]
    rows: list[JournalRow]


def read_journal(path: Path) -> JournalContent | None:
    """Return a journal's whole lines, None when there is no whole header."""
    header: dict[str, Any] | None = None
    rows: list[JournalRow] = []
    for _, value in _whole_lines(path):
        if header is None:
            header = value
        else:
            rows += [JournalRow(*entry) for entry in value["rows"]]
    return None if header is None else JournalContent(header["engine"], header["prompts"], rows)


def _whole_bytes(path: Path) -> int:
    return sum(size for size, _ in _whole_lines(path))


def _whole_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return size in bytes and value of each line, up to the first that is not one of ours."""
    lines: list[tuple[int, dict[str, Any]]] = []
    if not path.exists():
        return lines
    with path.open("rb") as handle:
        for line in handle:
            body = line[9:].removesuffix(b"\n")
            if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(body):
                break
            try:
                value = json.loads(body)
            except (ValueError, RecursionError):
                break
            if not (_is_batch(value) if lines else _is_header(value)):
                break
            lines.append((len(line), value))
    return lines


def _is_header(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    if not isinstance(value, dict) or not isinstance(value.get("engine"), str):
        return False
    prompts = value.get("prompts")
    return isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts)


def _is_batch(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    rows = value.get("rows") if isinstance(value, dict) else None
    return isinstance(rows, list) and all(map(_is_row, rows))


def _is_row(row: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Tell whether a row has the fields of :class:`JournalRow`: a rating, or why there is none."""
    if not isinstance(row, list) or len(row) != 6:
        return False
    record, prompt, key, values, mass, reason = row
    if type(record) is not int or type(prompt) is not int or min(record, prompt) < 0:
        return False
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        return False
    if not isinstance(reason, str | None):
        return False
    if values is None:
        return mass is None and reason is not None
    numbers = isinstance(values, list) and all(type(x) in (int, float) for x in values)
    return numbers and type(mass) in (int, float) and abs(sum(values) - 1.0) < _OFF_BY
