"""Record ids that do not depend on the order of the file.

A record keeps its own ``id`` when no other record has it. Every other record is called
``c-<content hash>-<n>``, where n counts the records of equal content, ordered by their
bytes: equal records may swap numbers without any harm.
"""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths

from __future__ import annotations

import hashlib
import re
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, RowStream, Scoped, Workspace
from selectit_dagster.data.fields import found

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ID_LENGTH = 200
_GENERATED = re.compile(r"c-[0-9a-f]{32}-\d+")


def own_id(record: dict[str, Any], column: str = "id") -> str | None:
    """Return the record's own id as text, or None when it has none that can be used."""
    value = found(record, column)
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


class Identities(Scoped):
    """Collects what the ids depend on, and gives them out in a second pass.

    What is remembered per record lies in a scratch file and is resolved outside memory.

    Parameters
    ----------
    work:
        Where the scratch file lies and is queried. Use the object in a ``with`` block while
        records are added.
    """

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._path = work.folder / "identities.parquet"
        self._sink: ParquetStream | None = None
        self._rows = self._start = 0
        self._renamed: RowStream | None = None
        self._numbered: RowStream | None = None
        self._with_own = 0
        self.own_unique = 0
        self.own_repeated = 0

    def _begin(self) -> None:
        self._sink = ParquetStream(self._path, compression="none")

    def _end(self, *, failed: bool) -> None:
        if self._sink is not None:
            self._sink.close()

    def add(self, digests: list[bytes], ids: list[str | None], raws: list[bytes]) -> None:
        """Remember one batch: content digests, own ids and raw bytes of its records."""
        import pyarrow as pa

        if self._sink is None:
            raise RuntimeError("records are added in a with block")
        pairs = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2)
        names = np.fromiter(map(_id_hash, ids), np.uint64, len(ids))
        self._with_own += int(np.count_nonzero(names))
        # length and checksum order records of equal content by what they are
        keys = ((len(raw) << 32) | zlib.crc32(raw) for raw in raws)
        columns = {
            "row": np.arange(self._rows, self._rows + len(ids)),
            "content": pairs[:, 0].astype(np.uint64),
            "name": names,
            "raw": np.fromiter(keys, np.uint64, len(raws)),
        }
        self._rows += len(ids)
        self._sink.write(pa.record_batch(columns))

    def resolve(self) -> None:
        """Decide which own ids stand and number the records of equal content."""
        if not self._rows:
            return
        keys = self._work.table(self._path)
        nameless = "name = 0"
        if self._with_own:
            repeated = (
                f"name IN (SELECT name FROM {keys} WHERE name <> 0 GROUP BY name "
                "HAVING count(*) > 1)"
            )
            renamed = f"FROM {keys} WHERE {repeated}"
            self.own_repeated = int(str(self._work.row(f"SELECT count(*) {renamed}")[0]))
            self._renamed = RowStream(self._work.batches(f"SELECT row {renamed} ORDER BY row"))
            nameless = f"(name = 0 OR {repeated})"
        self.own_unique = self._with_own - self.own_repeated
        query = (
            f"SELECT row, row_number() OVER (PARTITION BY content ORDER BY raw, row) - 1 AS number "
            f"FROM {keys} WHERE {nameless} AND content IN (SELECT content FROM {keys} "
            f"WHERE {nameless} GROUP BY content HAVING count(*) > 1) ORDER BY row"
        )
        self._numbered = RowStream(self._work.batches(query))

    def names(self, own: pa.Array, hashes: pa.Array) -> pa.Array:
        """Return the record ids of the next batch, in the order in which it was added."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._numbered is None:
            raise RuntimeError("resolve() comes before names()")
        start, stop = self._start, self._start + len(hashes)
        self._start = stop
        stands = own.is_valid().to_numpy(zero_copy_only=False)
        if self._renamed is not None:
            for part in self._renamed.until(stop):
                stands[part.column("row").to_numpy() - start] = False
        numbers = np.zeros(len(hashes), np.int64)
        for part in self._numbered.until(stop):
            numbers[part.column("row").to_numpy() - start] = part.column("number").to_numpy()
        made = pc.binary_join_element_wise("c", hashes, pa.array(numbers).cast(pa.string()), "-")
        return pc.if_else(pa.array(stands), own, made)


def _id_hash(value: str | None) -> int:
    if value is None:
        return 0
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
