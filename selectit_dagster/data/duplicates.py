"""Exact and near duplicates.

Both keep the record with the smallest id of a group, so the outcome does not depend on
the order of the file. Exact duplicates have the same instruction in normal form and the very same
response. Near duplicates
are found by MinHash signatures (datasketch) and locality-sensitive banding, and every
candidate pair is verified by the true Jaccard similarity of its word n-grams.
"""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, Scoped, Workspace
from selectit_dagster.data.text import tokens_of

SEED = 1


def duplicate_digest(normal: str, response: str, by: str | Sequence[str] = "record") -> bytes:
    """Return 16 bytes that two records share when they are exact duplicates.

    Instruction and input are compared in normal form (case, white space and compatibility forms
    folded); a response as it is, for there white space and case are part of the answer (code,
    ``2²`` and ``22``).

    Parameters
    ----------
    normal:
        The record in normal form: instruction, input and response on a line each.
    response:
        The response as it is.
    by:
        ``record``, ``instruction`` (with its input), or the parts that are compared.
    """
    instruction, given, _ = normal.split("\n")
    parts = {"instruction": instruction, "input": given, "response": response}
    names = {"record": list(parts), "instruction": ["instruction", "input"]}
    chosen = names[by] if isinstance(by, str) else by
    text = "\x00".join(parts[name] for name in chosen)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


@dataclass(frozen=True)
class Duplicates:
    """Rows that repeat another row: ``rows`` (D,), the rows kept instead, similarities."""

    rows: np.ndarray
    kept: np.ndarray
    similarity: np.ndarray


class Digests(Scoped):
    """Digests of normal forms in a scratch file, one per row that takes part.

    Use it in a ``with`` block while digests are added.
    """

    def __init__(self, work: Workspace) -> None:
        self.work = work
        self._sink = ParquetStream(work.folder / "digests.parquet", compression="none")

    def _end(self, *, failed: bool) -> None:
        self._sink.close()

    def add(self, rows: np.ndarray, digests: list[bytes]) -> None:
        """Add digests of 16 bytes and the rows that they belong to, (n,) each."""
        import pyarrow as pa

        pairs = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)
        self._sink.write(pa.record_batch({"row": rows, "a": pairs[:, 0], "b": pairs[:, 1]}))

    def repeated(self, records: Path) -> Duplicates:
        """Return the rows whose digest a row of smaller record id has too.

        Parameters
        ----------
        records:
            The Parquet file with the ``record_id`` of every row.
        """
        if not self._sink.rows:
            return Duplicates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        digests = self.work.table(self._sink.path)
        query = (
            "SELECT row, first_value(row) OVER (PARTITION BY a, b ORDER BY record_id) AS kept "
            f"FROM {digests} SEMI JOIN (SELECT a, b FROM {digests} GROUP BY a, b "
            "HAVING count(*) > 1) USING (a, b) JOIN (SELECT record_id, file_row_number AS row "
            f"FROM {self.work.table(records, row_numbers=True)}) USING (row) "
            "QUALIFY row <> kept ORDER BY row"
        )
        rows, kept = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for batch in self.work.batches(query):
            rows.append(batch.column("row").to_numpy())
            kept.append(batch.column("kept").to_numpy())
        found = np.concatenate(rows)
        return Duplicates(found, np.concatenate(kept), np.ones(len(found)))


def gram_hashes(text: str, ngram: int) -> np.ndarray:
    """Return the distinct hashes of a text's word n-grams, (G,) uint64.

    A text of fewer words than n is one gram. Words of scripts without blanks are single
    characters, so Chinese is compared by character n-grams; a symbol is a word of its own, so that
    C and C++, 5 and −5, two emoji are different.
    """
    tokens = tokens_of(text)
    codes = np.fromiter(map(_word_hash, tokens), np.uint64, len(tokens))
    return np.unique(_rolled(codes, min(ngram, max(len(codes), 1))))


_WORD_HASHES: dict[str, int] = {}
_MOST_WORDS = 1 << 20


def _word_hash(word: str) -> int:
    """Return a 64-bit hash of a word that is the same in every process."""
    found = _WORD_HASHES.get(word)
    if found is None:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found = int.from_bytes(digest, "little")
        if len(_WORD_HASHES) < _MOST_WORDS:
            _WORD_HASHES[word] = found
    return found


def _rolled(codes: np.ndarray, ngram: int) -> np.ndarray:
    """Return a hash of each window of ``ngram`` codes: (max(len - n + 1, 0),) uint64."""
    count = len(codes) - ngram + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    rolled = np.zeros(count, np.uint64)
    for offset in range(ngram):
        rolled = (rolled ^ codes[offset : offset + count]) * np.uint64(0x9E3779B97F4A7C15)
        rolled ^= rolled >> np.uint64(29)
    return rolled


def signatures(grams: Iterable[np.ndarray], permutations: int) -> np.ndarray:
    """Return the MinHash signatures of sets of gram hashes: (N, permutations) uint32."""
    from datasketch import MinHash

    rows = []
    pattern = MinHash(num_perm=permutations, seed=SEED, hashfunc=_as_it_is)
    for hashes in grams:
        sketch = pattern.copy()
        sketch.update_batch((hashes & np.uint64(0xFFFFFFFF)).tolist())
        rows.append(sketch.hashvalues.astype(np.uint32))
    return np.stack(rows) if rows else np.zeros((0, permutations), np.uint32)


def _as_it_is(value: int) -> int:
    return value


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Jaccard similarity of two sorted arrays of distinct values."""
    if not len(first) and not len(second):
        return 1.0
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def banded_keys(sketches: np.ndarray, threshold: float, permutations: int) -> np.ndarray:
    """Return one key per record and band, 0 where no other record has it: (N, bands) uint64.

    Bands and rows are those that datasketch's LSH finds best for the threshold, with more
    weight on pairs missed than on pairs compared in vain.
    """
    from datasketch import MinHashLSH

    # a false candidate costs one comparison, a missed one stays in the dataset
    best = MinHashLSH(threshold=threshold, num_perm=permutations, weights=(0.1, 0.9))
    keys = np.zeros((len(sketches), best.b), np.uint64)
    for band in range(best.b):
        part = sketches[:, band * best.r : (band + 1) * best.r].astype(np.uint64)
        values = _rolled_columns(part) | np.uint64(1)
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        keys[:, band] = np.where(counts[inverse] > 1, values, 0)
    return keys


def _rolled_columns(values: np.ndarray) -> np.ndarray:
    rolled = np.zeros(len(values), np.uint64)
    for column in values.T:
        rolled = (rolled ^ column) * np.uint64(0x9E3779B97F4A7C15)
        rolled ^= rolled >> np.uint64(29)
    return rolled


def near_duplicates(
    texts: Callable[[], Iterable[str]],
    ids: Sequence[str],
    *,
    threshold: float,
    ngram: int,
    permutations: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Duplicates:
    """Return the records that are at least ``threshold`` similar to a kept one.

    Goes through the records in the order of their ids; a record is kept unless a kept one
    is similar enough, so chains (A like B, B like C) do not drop C on behalf of A.

    Parameters
    ----------
    texts:
        Gives the records' texts, each time it is called.
    ids:
        Their record ids (N,).
    threshold:
        Lowest Jaccard similarity of a near duplicate.
    ngram, permutations:
        Words per n-gram; permutations of the signature.
    on_progress:
        Called with the number of records done.
    """
    sketches = _sketch_all(texts(), ngram, permutations, on_progress)
    keys = banded_keys(sketches, threshold, permutations)
    del sketches
    suspects = np.flatnonzero(keys.any(axis=1))
    chosen = set(suspects.tolist())
    grams = {row: gram_hashes(text, ngram) for row, text in enumerate(texts()) if row in chosen}
    found: list[tuple[int, int, float]] = []
    buckets: dict[tuple[int, int], list[int]] = {}
    for row in sorted(chosen, key=lambda index: ids[index]):
        own = [(band, key) for band, key in enumerate(keys[row].tolist()) if key]
        rivals = sorted({other for key in own for other in buckets.get(key, ())})
        similar = [(jaccard(grams[row], grams[other]), other) for other in rivals]
        best = max(similar, key=lambda pair: (pair[0], -pair[1]), default=(0.0, -1))
        if best[0] >= threshold:
            found.append((row, best[1], best[0]))
            continue
        for key in own:
            buckets.setdefault(key, []).append(row)
    found.sort()
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    return Duplicates(
        np.array(columns[0], np.int64), np.array(columns[1], np.int64), np.array(columns[2])
    )


def _sketch_all(
    texts: Iterable[str], ngram: int, permutations: int, on_progress: Callable[[int], None]
) -> np.ndarray:
    """Return the signatures of all texts, computed in blocks so that progress shows."""
    blocks: list[np.ndarray] = []
    held: list[np.ndarray] = []
    done = 0
    for text in texts:
        held.append(gram_hashes(text, ngram))
        if len(held) == 1024:
            blocks.append(signatures(held, permutations))
            done += len(held)
            held = []
            on_progress(done)
    blocks.append(signatures(held, permutations))
    return np.concatenate(blocks)
