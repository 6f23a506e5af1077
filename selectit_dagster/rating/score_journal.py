"""The journal of a chunk in progress: each finished batch is one line, appended at once.

A process that is killed loses the batches in flight and nothing else. A line carries its
checksum, so one that was cut short ends the reading instead of spoiling it.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

_SYNC_SECONDS = 2.0
# a distribution adds up to one within the digits of float32
_OFF_BY = 1e-3
_Index = Annotated[int, Field(ge=0)]


def journal_name(index: int) -> str:
    """Return the name of the journal of the chunk with that number."""
    return f"journal-{index:06d}.jsonl"


class JournalRow(NamedTuple):
    """One rated row: where it belongs, what it is known by, and what came out."""

    record: _Index
    prompt: _Index
    key: Annotated[str, Field(pattern="^[0-9a-f]{16,128}$")]
    probabilities: list[float] | None
    rating_mass: float | None
    reason: str | None


def _complete(row: JournalRow) -> JournalRow:
    """Refuse a row that has neither a distribution nor a reason why not."""
    p = row.probabilities
    if p is None:
        whole = row.rating_mass is None and row.reason is not None
    else:
        whole = row.rating_mass is not None and abs(sum(p) - 1.0) < _OFF_BY
    if not whole:
        raise ValueError("neither a rating nor a reason")
    return row


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    engine: str
    prompts: list[str]


class _Batch(BaseModel):
    model_config = ConfigDict(strict=True)

    rows: list[Annotated[JournalRow, AfterValidator(_complete)]]


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
        whole = sum(size for size, _ in _whole_lines(path))
        self.handle: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        self.handle.truncate(whole)
        self.handle.seek(whole)
        self.synced_at = time.monotonic()
        if not whole:
            self._write({"engine": engine, "prompts": prompts})

    def append(self, rows: list[JournalRow]) -> None:
        """Write one batch; flushed to the kernel at once, to the disk every two seconds."""
        self._write({"rows": rows})

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


class JournalContent(NamedTuple):
    """What a journal holds."""

    engine: str
    prompts: list[str]
    rows: list[JournalRow]


def read_journal(path: Path) -> JournalContent | None:
    """Return a journal's whole lines, None when there is no whole header."""
    lines = [value for _, value in _whole_lines(path)]
    if not lines or not isinstance(lines[0], _Header):
        return None
    rows = [row for batch in lines if isinstance(batch, _Batch) for row in batch.rows]
    return JournalContent(lines[0].engine, lines[0].prompts, rows)


def _whole_lines(path: Path) -> list[tuple[int, _Header | _Batch]]:
    """Return size in bytes and value of each line, up to the first that is not one of ours."""
    lines: list[tuple[int, _Header | _Batch]] = []
    if not path.exists():
        return lines
    with path.open("rb") as handle:
        for line in handle:
            body = line[9:].removesuffix(b"\n")
            if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(body):
                break
            try:
                value = (_Batch if lines else _Header).model_validate_json(body)
            except ValidationError:
                break
            lines.append((len(line), value))
    return lines
