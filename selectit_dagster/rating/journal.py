"""The journal of a chunk in progress: each finished batch is one line, appended at once.

A process that is killed loses the batches in flight and nothing else. A line carries its
checksum, so one that was cut short ends the reading instead of spoiling it.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_SYNC_SECONDS = 2.0


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
    for value in _values(path):
        if header is None:
            header = value
        else:
            rows += [
                JournalRow(record, prompt, key, p, mass, reason)
                for record, prompt, key, p, mass, reason in value["rows"]
            ]
    return None if header is None else JournalContent(header["engine"], header["prompts"], rows)


def _values(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line[9:]) for line in _whole_lines(path)]


def _whole_bytes(path: Path) -> int:
    return sum(len(line) for line in _whole_lines(path))


def _whole_lines(path: Path) -> list[bytes]:
    lines: list[bytes] = []
    if not path.exists():
        return lines
    with path.open("rb") as handle:
        for line in handle:
            body = line[9:].removesuffix(b"\n")
            if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(body):
                break
            lines.append(line)
    return lines
