"""What a dataset file is, told from its first bytes: its compression and its format."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from selectit_dagster.data.byte_sources import BOM, ByteSource, DamagedSource, unreadable
from selectit_dagster.errors import UserError

_PACKED = (
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstd"),  # or a frame without data
)
_WIDE = "UTF-16 or UTF-32 text"
# how files begin that are not read, and what they are
_REFUSED = (
    (b"PK\x03\x04", "a zip archive (or an Excel file)"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"ARROW1", "a bare Arrow file"),
    (b"\xff\xfe", _WIDE),
    (b"\xfe\xff", _WIDE),
    (b"\x00\x00\xfe\xff", _WIDE),
    (b"SQLite format 3", "an SQLite database"),
    (b"<", "HTML or XML"),
)


def head_of(path: Path, size: int = 1 << 16) -> tuple[str, bytes]:
    """Return the compression of a file and its first unpacked bytes.

    Raises
    ------
    UserError
        When it is not a readable, non-empty regular file.
    """
    if not path.exists():
        raise UserError(
            f"the dataset {path} does not exist", hint="check dataset.path in the experiment"
        )
    if not path.is_file():
        raise UserError(
            f"the dataset {path} is not a regular file or folder",
            hint="write what comes from a pipe or a device to a file first",
        )
    try:
        with path.open("rb") as handle:
            head = handle.read(size)
    except OSError as error:
        raise unreadable(path, error) from error
    if not head:
        raise UserError(f"{path} is empty: 0 bytes", hint="give a file that holds records")
    kind = next((name for magic, name in _PACKED if magic.match(head)), "none")
    if kind == "none" and head.strip():
        return kind, head
    start = b""
    # damage is told when the records are read
    with contextlib.suppress(DamagedSource):
        for piece in ByteSource(path, kind).pieces():
            # however many blanks come first, the format shows after them
            start += piece if start else piece.lstrip()
            if len(start) >= size:
                break
    return kind, start[:size]


def detect_format(path: Path, compression: str, head: bytes) -> str:
    """Return ``json``, ``jsonl``, ``csv`` or ``parquet`` by looking at the first bytes.

    Raises
    ------
    UserError
        When the content is of no supported format.
    """
    text = head.removeprefix(BOM).lstrip()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a Git LFS pointer, not the data themselves",
            hint="run `git lfs pull` in the folder that it was cloned to",
        )
    if head.startswith(b"PAR1") and compression == "none":
        return "parquet"
    if what := _refused(head, text, compression):
        raise UserError(
            f"{path} is {what}, which is not read",
            hint="convert it to JSON, JSON Lines (.gz, .zst), CSV or Parquet, in UTF-8",
        )
    if not text and compression == "none":
        raise UserError(f"{path} holds no records: only blanks", hint="give a file with records")
    if not text:
        return "jsonl"  # a damaged archive or blanks: the reader says which
    if text[:1] in b"[{":
        return "json" if text[:1] == b"[" or _is_stream(text, ".json" in path.suffixes) else "jsonl"
    first = text.splitlines()[0]
    if any(mark in first for mark in b",;\t|") or {".csv", ".tsv"} & set(path.suffixes):
        return "csv"
    raise UserError(
        f"{path}: the content is neither JSON, JSON Lines, CSV nor Parquet; it starts with "
        f"{text[:40]!r}",
        hint="dataset.format forces a format",
    )


def _refused(head: bytes, text: bytes, compression: str) -> str:
    """Return what a file is that is not read, empty for one that may be."""
    packed = next((name for magic, name in _PACKED if magic.match(head)), "")
    packed = packed or ("parquet" if head.startswith(b"PAR1") else "")
    if packed:
        return f"{packed} inside {compression}"
    what = next((w for magic, w in _REFUSED if head.startswith(magic)), "")
    if text.startswith(b"<"):
        return "HTML or XML"
    first = text[:4] if text[:1] in b"[{" else text.split(b"\n", 1)[0]
    return what or (f"{_WIDE}, or binary data" if b"\x00" in first else "")


def _is_stream(text: bytes, named_json: bool) -> bool:
    """Tell objects over several lines, several on a line, or a wrapper, from JSON Lines."""
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    whole = [_objects_on(line) for line in lines[:-1] or lines]
    if whole[0] > 1:
        return True
    if len(lines) == 1:
        return named_json  # a single object: a record, or a wrapper of records
    return not any(whole) and lines[0].rstrip()[-1:] in (b"{", b"[", b",")


def _objects_on(line: bytes) -> int:
    """Return how many objects a line begins with: none, one alone, or two for more."""
    try:
        text = line.decode("utf-8").strip()
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        return 0
    rest = text[end:].lstrip()
    if not isinstance(value, dict) or (rest and rest[0] != "{"):
        return 0
    return 2 if rest else 1
