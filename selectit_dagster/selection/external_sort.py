"""Chosen rows of a large table, put into the order of their ranks outside memory.

Two passes over the rows, whatever their number: the first, in the order of the file, puts
each row into the bucket of its rank; the second sorts one bucket after the other. DuckDB
sorts keys here, but holds rows of long texts in memory beyond its limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import (
    RowStream,
    Workspace,
    release_unused,
    stored_batches,
)

if TYPE_CHECKING:
    import pyarrow as pa

_BUCKET_BYTES = 16 << 20
_HELD_BYTES = 8 << 20
_MOST_BUCKETS = 256
_ROWS = 1 << 13
RANK = "rank"


class ByRank:
    """Takes ``count`` rows in any order, their ranks last, and gives them back by rank.

    ``row_bytes`` is about how large a row is in memory; ``folder`` holds the buckets.
    """

    def __init__(self, folder: Path, count: int, row_bytes: float) -> None:
        self.folder = folder
        size = max(1, int(_BUCKET_BYTES / max(1.0, row_bytes)), -(-count // _MOST_BUCKETS))
        self._size = size
        self._held_rows = max(1, int(_HELD_BYTES / max(1.0, row_bytes)))
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch; its last column holds the ranks."""
        if batch.num_rows:
            self._held.append(batch)
            self._rows += batch.num_rows
        if self._rows >= self._held_rows:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._held:
            return
        table = pa.Table.from_batches(self._held)
        self._held, self._rows = [], 0
        buckets = (_last(table) - 1) // self._size
        order = np.argsort(buckets, kind="stable")
        table = table.take(pa.array(order))
        found, starts = np.unique(buckets[order], return_index=True)
        ends = [*starts[1:].tolist(), len(order)]
        for bucket, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            if bucket not in self._writers:
                self._writers[bucket] = pa.ipc.new_stream(self._path(bucket), table.schema)
            self._writers[bucket].write_table(table.slice(start, end - start))
        del table
        release_unused()

    def _path(self, bucket: int) -> str:
        return str(self.folder / f"bucket-{bucket:04d}.arrow")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows by rank; each bucket is gone once it was read."""
        import pyarrow as pa

        self._flush()
        for writer in self._writers.values():
            writer.close()
        for bucket in sorted(self._writers):
            path = self._path(bucket)
            # not memory-mapped: mapped pages would count as memory of this process
            with pa.OSFile(path) as source, pa.ipc.open_stream(source) as reader:
                table = reader.read_all()
            Path(path).unlink()
            order = np.argsort(_last(table), kind="stable")
            for start in range(0, len(order), _ROWS):
                part = table.take(pa.array(order[start : start + _ROWS])).combine_chunks()
                yield from part.to_batches()
            del table
            release_unused()


def _last(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the last column as numbers."""
    return np.asarray(table.column(table.num_columns - 1).to_numpy(), np.int64)


def chosen_rows(
    records: Path, chosen: str, columns: list[str], work: Workspace
) -> Iterator[pa.RecordBatch]:
    """Yield the chosen records in the order of the file: ``columns``, then those of ``chosen``.

    ``records`` is a Parquet file with ``record_id``, ``chosen`` a table with ``record_id`` and
    ``rank``, which goes last.
    """
    import pyarrow as pa

    places = work.batches(
        "SELECT file_row_number AS row, c.* EXCLUDE (record_id, rank), c.rank FROM "
        f"(SELECT record_id, file_row_number FROM {work.table(records, row_numbers=True)}) "
        f"JOIN {chosen} c USING (record_id) ORDER BY row"
    )
    stream = RowStream(places)
    start = 0
    for batch in stored_batches(records, columns, _ROWS):
        stop = start + batch.num_rows
        for place in stream.until(stop):
            taken = batch.take(pa.array(place.column("row").to_numpy() - start))
            names = [*batch.schema.names, *place.schema.names[1:]]
            yield pa.record_batch([*taken.columns, *place.columns[1:]], names=names)
        start = stop


def row_bytes(records: Path) -> float:
    """Return about how many bytes a row of a Parquet file takes in memory."""
    import pyarrow.parquet as pq

    facts = pq.read_metadata(records)
    groups = (facts.row_group(number) for number in range(facts.num_row_groups))
    return sum(group.total_byte_size for group in groups) / max(1, facts.num_rows)
