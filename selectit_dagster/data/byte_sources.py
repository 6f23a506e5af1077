"""Where bytes come from: a dataset file opened, decompressed on the way, in bounded blocks.

No reader above holds more than a few blocks, so a decompression bomb costs time and not memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.errors import UserError

BLOCK = 4 << 20
# read at once of packed data: deflate expands it to at most 4 MiB, zstd to 32 MiB (a block of
# 128 KiB from 4 bytes)
_PACKED_BLOCK = {"gzip": 4 << 10, "zstd": 1 << 10}
_ZSTD_WINDOW = 1 << 27
BOM = b"\xef\xbb\xbf"


class DamagedSource(UserError):  # noqa: N818 - like its base, a message to the user
    """Compressed data that are damaged or end early: what came before was still read."""


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error for a file that the system does not let us read."""
    return UserError(
        f"cannot read {path}: {error.strerror or error}",
        hint="check that the file is there, that you may read it and that its disk is well",
    )


@dataclass
class ByteSource:
    """A file that is read once, in blocks, decompressed (``none``, ``gzip``, ``zstd``) on the way.

    Attributes
    ----------
    size, consumed:
        Bytes on the disk, and how many of them were read so far.
    unpacked:
        Bytes after decompression so far.
    marked:
        Whether the text began with a byte order mark.
    """

    path: Path
    compression: str
    size: int = 0
    consumed: int = 0
    unpacked: int = 0
    marked: bool = False

    def __post_init__(self) -> None:
        self.size = self.path.stat().st_size

    def _disk(self, size: int) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as handle:
                while chunk := handle.read(size):
                    self.consumed += len(chunk)
                    yield chunk
        except OSError as error:
            raise unreadable(self.path, error) from error

    def blocks(self) -> Iterator[bytes]:
        """Yield the unpacked bytes in blocks of about 4 MiB, without a byte-order mark.

        Raises
        ------
        DamagedSource
            When the compressed data are damaged or end early, naming the byte; what came before
            the damage was yielded.
        """
        parts: list[bytes] = []
        held, first, damage = 0, True, None
        pieces = self.pieces()
        while damage is None:
            try:
                piece = next(pieces, b"")
            except DamagedSource as error:
                damage, piece = error, b""
            parts.append(piece)
            held += len(piece)
            if piece and held < BLOCK:
                continue
            if block := b"".join(parts):
                self.marked |= first and block.startswith(BOM)
                yield block.removeprefix(BOM) if first else block
            held, first, parts = 0, False, []
            if not piece and damage is None:
                return
        raise damage

    def pieces(self) -> Iterator[bytes]:
        """Yield the unpacked bytes as they come."""
        for piece in self._disk(BLOCK) if self.compression == "none" else self._unpack():
            self.unpacked += len(piece)
            yield piece

    def _unpack(self) -> Iterator[bytes]:
        """Unpack the members of a gzip file, or the frames of a zstd one."""
        import zstandard

        zstd = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        gzip = self.compression == "gzip"
        member = zlib.decompressobj(wbits=31) if gzip else zstd.decompressobj()
        started = False
        for chunk in self._disk(_PACKED_BLOCK[self.compression]):
            data = chunk
            while data and (started or data.strip(b"\x00")):  # zeros after a member are padding
                started = True
                try:
                    piece = member.decompress(data)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise self._broken(error) from error
                if piece:
                    yield piece
                data = member.unused_data
                if member.eof:
                    member = zlib.decompressobj(wbits=31) if gzip else zstd.decompressobj()
                    started = False
        if started:
            raise self._damaged("end in the middle")

    def _broken(self, error: Exception) -> UserError:
        if "too much memory" not in str(error):
            return self._damaged("are damaged", f" ({error})")
        return UserError(
            f"{self.path}: the zstd data need a window of more than {_ZSTD_WINDOW >> 20} MiB "
            "(zstd --long) to be unpacked",
            hint="unpack the file, or pack it again without --long",
        )

    def _damaged(self, what: str, detail: str = "") -> DamagedSource:
        return DamagedSource(
            f"{self.path}: the {self.compression} data {what} at byte {self.consumed:,} of the "
            f"file, after {self.unpacked:,} bytes of unpacked text{detail}",
            hint="the file is damaged or was not written to its end; copy or make it again",
        )
