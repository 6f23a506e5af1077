"""Record ids that do not depend on the order of the file.

A record keeps its own ``id`` when no other record has it. Every other record is called
``c-<content hash>-<n>``, where n counts the records of equal content, ordered by their
bytes: equal records may swap numbers without any harm.

What is remembered per record is 28 bytes, so five million records cost 140 MB.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ID_LENGTH = 200
_GENERATED = re.compile(r"c-[0-9a-f]{32}-\d+")


def own_id(record: dict[str, Any]) -> str | None:
    """Return the record's own ``id`` as text, or None when it has none that can be used."""
    value = record.get("id")
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    if type(value) is not str or not value.strip() or len(value) > MAX_ID_LENGTH:
        return None
    # a name of the generated form could take another record's name
    return None if value.startswith("c-") and _GENERATED.fullmatch(value) else value


def content_digest(text: bytes) -> bytes:
    """Return the first 16 bytes of the SHA-256 of a record's texts."""
    return hashlib.sha256(text).digest()[:16]


class Identities:
    """Collects what the ids depend on, and gives them out in a second pass."""

    def __init__(self) -> None:
        self._contents: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        self._raws: list[np.ndarray] = []
        self._start = 0
        self._own: np.ndarray | None = None
        self._occurrence: np.ndarray | None = None
        self.own_unique = 0
        self.own_repeated = 0

    def add(self, digests: list[bytes], ids: list[str | None], raws: list[bytes]) -> None:
        """Remember one batch: content digests, own ids and raw bytes of its records."""
        pairs = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
        self._contents.append(pairs[:, 0].astype(np.uint64))
        self._ids.append(np.fromiter(map(_id_hash, ids), np.uint64, len(ids)))
        # length and checksum order records of equal content by what they are
        keys = ((len(raw) << 32) | zlib.crc32(raw) for raw in raws)
        self._raws.append(np.fromiter(keys, np.uint64, len(raws)))

    def resolve(self) -> None:
        """Decide which own ids stand and number the records of equal content."""
        empty = [np.zeros(0, np.uint64)]
        ids = np.concatenate(self._ids or empty)
        contents = np.concatenate(self._contents or empty)
        raws = np.concatenate(self._raws or empty)
        self._ids, self._contents, self._raws = [], [], []
        repeated = _repeated(ids)
        has_own = ids != 0
        self._own = has_own & ~repeated
        self.own_unique = int(self._own.sum())
        self.own_repeated = int((has_own & repeated).sum())
        self._occurrence = np.zeros(len(ids), np.int32)
        rows = np.flatnonzero(~self._own)
        rows = rows[_repeated(contents[rows])]
        rows = rows[np.lexsort((rows, raws[rows], contents[rows]))]
        keys = contents[rows]
        firsts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(rows) else rows
        sizes = np.diff(np.append(firsts, len(rows)))
        self._occurrence[rows] = np.arange(len(rows)) - np.repeat(firsts, sizes)

    def names(self, own: pa.Array, hashes: pa.Array) -> pa.Array:
        """Return the record ids of the next batch, in the order in which it was added."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._own is None or self._occurrence is None:
            raise RuntimeError("resolve() comes before names()")
        part = slice(self._start, self._start + len(hashes))
        self._start = part.stop
        numbers = pa.array(self._occurrence[part]).cast(pa.string())
        made = pc.binary_join_element_wise("c", hashes, numbers, "-")
        return pc.if_else(pa.array(self._own[part]), own, made)


def _id_hash(value: str | None) -> int:
    if value is None:
        return 0
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Return which entries occur more than once: (N,) bool."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    flags = np.zeros(len(keys), bool)
    flags[order[1:]] |= same
    flags[order[:-1]] |= same
    return flags
