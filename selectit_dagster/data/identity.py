"""Record ids that do not depend on the order of the file.

A record keeps its own ``id`` when no other record has it. Every other record is called
``c-<content hash>-<n>``, where n counts the records of equal content, ordered by their
bytes: equal records may swap numbers without any harm. What the ids depend on lies in a scratch
file while records are read, and is resolved outside memory.
"""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.artefacts.duckdb_tables import RowStream, Workspace
from selectit_dagster.data.fields import found

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ID_LENGTH = 200
_GENERATED = re.compile(r"c-[0-9a-f]{32}-\d+")


def own_id(record: dict[str, Any], column: str = "id") -> str | None:
    """Return the record's own id as text, or None when it has none that can be used."""
    value = found(record, column)
    if type(value) is int:
        return str(value)
    if type(value) is not str or not value.strip() or len(value) > MAX_ID_LENGTH:
        return None
    # a name of the generated form could take another record's name
    return None if value.startswith("c-") and _GENERATED.fullmatch(value) else value


def content_digest(text: bytes) -> bytes:
    """Return the first 16 bytes of the SHA-256 of a record's texts."""
    return hashlib.sha256(text).digest()[:16]


def identity_keys(
    first: int, digests: list[bytes], ids: list[str | None], raws: list[bytes]
) -> pa.RecordBatch:
    """Return what the ids of rows ``first``, ``first + 1``, ... depend on: 32 bytes each."""
    import pyarrow as pa

    # length and checksum order records of equal content by what they are
    keys = ((len(raw) << 32) | zlib.crc32(raw) for raw in raws)
    columns = {
        "row": np.arange(first, first + len(ids)),
        "content": np.frombuffer(b"".join(digests), dtype=">u8")[::2].astype(np.uint64),
        "name": np.fromiter(map(_id_hash, ids), np.uint64, len(ids)),
        "raw": np.fromiter(keys, np.uint64, len(raws)),
    }
    return pa.record_batch(columns)


def _id_hash(value: str | None) -> int:
    if value is None:
        return 0
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class Names:
    """Gives out the record ids, batch by batch, in the order in which the keys were written.

    Attributes
    ----------
    own, repeated:
        How many records keep their own id, and how many lost it because another one has it.
    """

    def __init__(self, work: Workspace, keys: Path) -> None:
        self._start = self.own = self.repeated = 0
        table = work.table(keys)
        query = (
            f"WITH nameless AS (SELECT row, content, raw, name <> 0 AS renamed FROM {table} "
            f"WHERE name = 0 OR name IN (SELECT name FROM {table} WHERE name <> 0 GROUP BY name "
            "HAVING count(*) > 1)) "
            "SELECT row, renamed, row_number() OVER (PARTITION BY content ORDER BY raw, row) - 1 "
            "AS number FROM nameless WHERE renamed OR content IN (SELECT content FROM nameless "
            "GROUP BY content HAVING count(*) > 1) ORDER BY row"
        )
        self._numbered = RowStream(work.batches(query))

    def of(self, own: pa.Array, hashes: pa.Array) -> pa.Array:
        """Return the ids of the next rows from their own ids and their content hashes."""
        import pyarrow as pa
        import pyarrow.compute as pc

        start, self._start = self._start, self._start + len(hashes)
        stands = own.is_valid().to_numpy(zero_copy_only=False)
        numbers = np.zeros(len(hashes), np.int64)
        for part in self._numbered.until(self._start):
            rows = part.column("row").to_numpy() - start
            numbers[rows] = part.column("number").to_numpy()
            renamed = rows[part.column("renamed").to_numpy(zero_copy_only=False)]
            stands[renamed] = False
            self.repeated += len(renamed)
        self.own += int(stands.sum())
        made = pc.binary_join_element_wise("c", hashes, pa.array(numbers).cast(pa.string()), "-")
        return pc.if_else(pa.array(stands), own, made)
