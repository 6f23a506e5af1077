"""Where bytes come from: opening, decompressing and recognising a dataset file.

Everything streams: no reader above holds more than a few blocks, so a decompression bomb
costs time and not memory.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.errors import UserError

BLOCK = 4 << 20
_DISK_BLOCK = 1 << 20
# Highest expansion of one zstd block is 128 KiB from 4 bytes: 1 KiB in is at most 32 MiB out
_ZSTD_BLOCK = 1 << 10
_ZSTD_WINDOW = 1 << 27

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1", "parquet"),
    (b"PK\x03\x04", "zip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"ARROW1", "arrow"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"SQLite format 3", "sqlite"),
)
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # a zstd frame without data
_REFUSED = {
    "zip": "a zip archive (or an Excel file)",
    "bzip2": "compressed with bzip2",
    "xz": "compressed with xz",
    "arrow": "a bare Arrow file",
    "utf-16": "UTF-16 text",
    "utf-32": "UTF-32 text",
    "sqlite": "an SQLite database",
    "markup": "HTML or XML",
}
_BOM = b"\xef\xbb\xbf"


_UNREADABLE = "check that the file is there, that you may read it and that its disk is well"


class DamagedSource(UserError):  # noqa: N818 - like its base, a message to the user
    """Compressed data that are damaged or end early: what came before was still read."""


@dataclass
class ByteSource:
    """A file that is read once, in blocks, decompressed on the way.

    Attributes
    ----------
    size, consumed:
        Bytes on the disk, and how many of them were read so far.
    unpacked:
        Bytes after decompression so far.
    """

    path: Path
    compression: str
    size: int = 0
    consumed: int = 0
    unpacked: int = 0
    marked: bool = False  # whether the text began with a byte order mark

    def __post_init__(self) -> None:
        self.size = self.path.stat().st_size

    def _disk(self, size: int = _DISK_BLOCK) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as handle:
                while chunk := handle.read(size):
                    self.consumed += len(chunk)
                    yield chunk
        except OSError as error:
            raise UserError(
                f"cannot read {self.path}: {error.strerror or error}", hint=_UNREADABLE
            ) from error

    def blocks(self) -> Iterator[bytes]:
        """Yield the unpacked bytes in blocks of about 4 MiB, without a byte-order mark.

        Raises
        ------
        DamagedSource
            When the compressed data are damaged or end early, naming the byte.
        """
        first, parts, held = True, [], 0
        damage: DamagedSource | None = None
        pieces = self.pieces()
        while True:
            try:
                piece = next(pieces, None)
            except DamagedSource as error:
                # what came before the damage is whole
                damage, piece = error, None
            if piece is not None:
                parts.append(piece)
                held += len(piece)
                if held < BLOCK:
                    continue
            if held:
                block, parts, held = b"".join(parts), [], 0
                self.marked |= first and block.startswith(_BOM)
                yield block.removeprefix(_BOM) if first else block
                first = False
            if damage is not None:
                raise damage
            if piece is None:
                return

    def pieces(self) -> Iterator[bytes]:
        """Yield the unpacked bytes as they come."""
        unpack = {"none": self._plain, "gzip": self._gzip, "zstd": self._zstd}[self.compression]
        for piece in unpack():
            self.unpacked += len(piece)
            yield piece

    def _plain(self) -> Iterator[bytes]:
        return self._disk(BLOCK)

    def _damaged(self, what: str, error: object = "") -> DamagedSource:
        detail = f" ({error})" if error else ""
        return DamagedSource(
            f"{self.path}: the {self.compression} data {what} at byte {self.consumed:,} of the "
            f"file, after {self.unpacked:,} bytes of unpacked text{detail}",
            hint="the file is damaged or was not written to its end; copy or make it again",
        )

    def _wide_window(self) -> UserError:
        return UserError(
            f"{self.path}: the zstd data need a window of more than {_ZSTD_WINDOW >> 20} MiB "
            "(zstd --long) to be unpacked",
            hint="unpack the file, or pack it again without --long",
        )

    def _gzip(self) -> Iterator[bytes]:
        """Unpack one or more gzip members; never more than one block at once."""
        member = zlib.decompressobj(wbits=31)
        started = False
        for chunk in self._disk():
            data = chunk
            while data:
                if not started and not data.strip(b"\x00"):
                    break  # zero padding after the last member is allowed
                started = True
                try:
                    piece = member.decompress(data, BLOCK)
                except zlib.error as error:
                    raise self._damaged("are damaged", error) from error
                if piece:
                    yield piece
                data = member.unconsumed_tail
                if member.eof:
                    data = member.unused_data
                    member, started = zlib.decompressobj(wbits=31), False
        while started and (piece := member.decompress(member.unconsumed_tail, BLOCK)):
            yield piece
        if started and not member.eof:
            raise self._damaged("end in the middle")

    def _zstd(self) -> Iterator[bytes]:
        """Unpack one or more zstd frames."""
        import zstandard

        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        frame, started = unpacker.decompressobj(), False
        for chunk in self._disk(_ZSTD_BLOCK):
            data = chunk
            while data:
                started = True
                try:
                    piece = frame.decompress(data)
                except zstandard.ZstdError as error:
                    if "too much memory" in str(error):
                        raise self._wide_window() from error
                    raise self._damaged("are damaged", error) from error
                if piece:
                    yield piece
                data = b""
                if frame.eof:
                    data = frame.unused_data
                    frame, started = unpacker.decompressobj(), False
        if started:
            raise self._damaged("end in the middle")


def head_of(path: Path, size: int = 1 << 16) -> tuple[str, bytes]:
    """Return the compression of a file and its first unpacked bytes.

    Raises
    ------
    UserError
        When it is not a readable, non-empty regular file of a supported kind.
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
        raise UserError(
            f"cannot read {path}: {error.strerror or error}", hint=_UNREADABLE
        ) from error
    if not head:
        raise UserError(f"{path} is empty: 0 bytes", hint="give a file that holds records")
    kind = kind_of(head)
    if kind not in {"gzip", "zstd"}:
        kind = "none"
        if head.strip():
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


def kind_of(head: bytes) -> str | None:
    """Return what the first bytes say about a file, or None for plain text."""
    if _SKIPPABLE.match(head):
        return "zstd"
    found = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
    return found or _wide_text(head)


def _wide_text(head: bytes) -> str | None:
    """Recognise UTF-16 and UTF-32 without a mark by the zero bytes between ASCII characters."""
    sample = head[:400]
    for kind, width in (("utf-32", 4), ("utf-16", 2)):
        for place in (0, width - 1):
            characters = sample[place::width]
            others = [sample[k::width] for k in range(width) if k != place]
            if len(characters) >= 4 and all(part.count(0) * 4 >= len(part) * 3 for part in others):
                printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in characters)
                if printable * 4 >= len(characters) * 3:
                    return kind
    return None


def detect_format(path: Path, compression: str, head: bytes) -> str:
    """Return ``json``, ``jsonl``, ``csv`` or ``parquet`` by looking at the first bytes.

    Raises
    ------
    UserError
        When the content is of no supported format.
    """
    text = head.removeprefix(_BOM).lstrip()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a Git LFS pointer, not the data themselves",
            hint="run `git lfs pull` in the folder that it was cloned to",
        )
    kind = "markup" if text[:1] == b"<" else kind_of(head)
    if kind == "parquet" and compression == "none":
        return "parquet"
    if kind is not None:
        what = _REFUSED.get(kind, f"{kind} inside {compression}")
        raise UserError(
            f"{path} is {what}, which is not read",
            hint="convert it to JSON, JSON Lines (.gz, .zst), CSV or Parquet, in UTF-8",
        )
    if not text and compression != "none":
        return "jsonl"  # a damaged archive or blanks: the reader says which
    if not text:
        raise UserError(f"{path} holds no records: only blanks", hint="give a file with records")
    if text[:1] == b"[":
        return "json"
    if text[:1] == b"{":
        return "json" if _is_one_object(text) else "jsonl"
    if b"\x00" in text.splitlines()[0]:
        raise UserError(
            f"{path} is binary data of no known format",
            hint="convert it to JSON, JSON Lines, CSV or Parquet",
        )
    if _looks_like_csv(text, path):
        return "csv"
    raise UserError(
        f"{path}: the content is neither JSON, JSON Lines, CSV nor Parquet; it starts with "
        f"{text[:40]!r}",
        hint="dataset.format forces a format",
    )


def _is_one_object(text: bytes) -> bool:
    """Tell objects over several lines, or several on a line, from JSON Lines."""
    import orjson

    lines = [line for line in text.splitlines()[:20] if line.strip()]
    if _several(lines[0]):
        return True
    for line in lines[:-1] or lines:
        try:
            if type(orjson.loads(line)) is dict:
                return False
        except orjson.JSONDecodeError:
            continue
    return len(lines) > 1 and lines[0].rstrip()[-1:] in (b"{", b"[", b",")


def _several(line: bytes) -> bool:
    """Tell whether a line holds more than one whole object."""
    import json

    try:
        text = line.decode("utf-8")
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and text[end:].lstrip()[:1] == "{"


def _looks_like_csv(text: bytes, path: Path) -> bool:
    first = text.splitlines()[0]
    return any(mark in first for mark in (b",", b";", b"\t", b"|")) or any(
        suffix in {".csv", ".tsv"} for suffix in path.suffixes
    )
