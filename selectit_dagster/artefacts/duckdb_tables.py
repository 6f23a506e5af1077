"""Tables that are larger than memory: one DuckDB connection with a limit, streams in and out.

Belongs here: opening the columnar engine with its memory limit and spill folder, streaming
a query's result or a file in batches, writing a stream of batches to Parquet. Must not be here:
anything that knows what a record, a score or an arm is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

# What is larger than this goes to the disk. It is low on purpose: sorting five million keys
# takes the same memory as sorting one million, and hardly more time for each.
MEMORY_PER_THREAD = 75 * 1000 * 1000
MOST_THREADS = 4
BATCH_ROWS = 1 << 16
_GLOB_CHARACTERS = frozenset("*?[]{}")


class Workspace:
    """A scratch folder beside an artefact, with a DuckDB connection that spills into it.

    Everything in it is gone when the block ends, however it ends.

    Parameters
    ----------
    beside:
        The artefact's folder: scratch files lie in it, on its file system.
    memory_limit:
        Bytes that DuckDB may hold before it spills to the scratch folder.
    """

    def __init__(self, beside: Path, memory_limit: int | None = None) -> None:
        self.beside = beside
        self.threads = min(MOST_THREADS, os.cpu_count() or 1)
        self.memory_limit = memory_limit or MEMORY_PER_THREAD * max(2, self.threads)

    def __enter__(self) -> Self:
        import duckdb

        self.beside.mkdir(parents=True, exist_ok=True)
        for stale in self.beside.glob(".work-*"):
            # the artefact's lock is held, so a scratch folder is what a killed run left behind
            shutil.rmtree(stale, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=".work-", dir=self.beside))
        self._links = Path(tempfile.mkdtemp(prefix="selectit-links-"))
        self.connection: duckdb.DuckDBPyConnection = duckdb.connect(
            config={
                "memory_limit": f"{self.memory_limit // 1000 // 1000}MB",
                "temp_directory": str(self.folder / "spill"),
                "threads": self.threads,
                "preserve_insertion_order": False,
                # nothing is ever fetched
                "autoinstall_known_extensions": False,
            }
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._links, ignore_errors=True)

    def table(self, path: Path, *, row_numbers: bool = False) -> str:
        """Return the SQL expression that reads the Parquet file ``path``.

        DuckDB takes ``*``, ``?`` and brackets in a path for patterns, so a path that has
        them is read through a link with a plain name. ``row_numbers`` adds the column
        ``file_row_number``, from 0.
        """
        if _GLOB_CHARACTERS & set(str(path)):
            link = self._links / f"{len(list(self._links.iterdir()))}.parquet"
            link.symlink_to(path.resolve())
            path = link
        # a subquery, because two bare calls in one query would have the same name
        numbers = str(row_numbers).lower()
        return f"(FROM read_parquet({literal(str(path))}, file_row_number = {numbers}))"

    def allow(self, memory_limit: int) -> None:
        """Let DuckDB hold so many bytes from now on, for work that cannot do with less."""
        self.connection.execute(f"SET memory_limit = '{memory_limit // 1000 // 1000}MB'")

    def batches(
        self, query: str, rows: int = BATCH_ROWS, *, as_stored: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Run ``query`` and yield its result in batches of up to ``rows`` rows.

        ``as_stored`` keeps the order of the file where the query has no ORDER BY.
        """
        session = self._session(as_stored)
        relation = session.sql(query)
        # the name before DuckDB 1.5 was fetch_arrow_reader
        modern = hasattr(type(relation), "to_arrow_reader")
        name = "to_arrow_reader" if modern else "fetch_arrow_reader"
        for batch in getattr(relation, name)(rows):
            if batch.num_rows:
                yield batch

    def _session(self, as_stored: bool) -> duckdb.DuckDBPyConnection:
        """Return a session of its own, so that a result which was left half read is no bar."""
        session = self.connection.cursor()
        session.execute("SET enable_progress_bar = false")
        session.execute(f"SET preserve_insertion_order = {str(as_stored).lower()}")
        return session

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the few rows of a query, each by its columns' names."""
        return [row for batch in self.batches(query) for row in batch.to_pylist()]

    def row(self, query: str) -> tuple[Any, ...]:
        """Run a query that has one row, and return it."""
        return tuple(self._session(False).sql(query).fetchall()[0])


def literal(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def stored_batches(
    path: Path, columns: list[str] | None, rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield columns of a Parquet file (None: all) in the order of its rows, a batch at a time.

    No batch goes over the end of a row group: those of long records have few rows.
    """
    import pyarrow.parquet as pq

    # pre_buffer would keep every row group that was read until the last one is
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(rows, row_groups=[group], columns=columns)


def release_unused() -> None:
    """Give memory that Arrow holds for later back to the system: it would count as used."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


class RowStream:
    """What is known of some rows of a table, taken range by range.

    Parameters
    ----------
    batches:
        With a column ``row``, ascending over all of them.
    """

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held: pa.RecordBatch | None = next(batches, None)

    def until(self, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield what has a ``row`` below ``stop`` and was not yielded before."""
        while self._held is not None:
            rows = self._held.column("row").to_numpy()
            here = int(rows.searchsorted(stop))
            part, self._held = self._held.slice(0, here), self._held.slice(here)
            if here:
                yield part
            if self._held.num_rows:
                return
            self._held = next(self._batches, None)


class ParquetStream:
    """Write batches to one Parquet file, whose schema is the first batch's or given.

    The file is complete when the block ends; write it in a :class:`Workspace` and move it.
    ``dictionary`` names the columns whose values repeat (True: all may); for the others a
    dictionary costs time and saves nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        schema: pa.Schema | None = None,
        compression: str = "zstd",
        dictionary: list[str] | bool = False,
    ) -> None:
        self.path = path
        self.dictionary = dictionary
        self.compression = compression
        self.rows = 0
        self._writer = None if schema is None else self._open(schema)

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        import pyarrow.parquet as pq

        return pq.ParquetWriter(
            self.path, schema, compression=self.compression, use_dictionary=self.dictionary
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch as one row group."""
        if self._writer is None:
            self._writer = self._open(batch.schema)
        self._writer.write_batch(batch)
        self.rows += batch.num_rows
        release_unused()

    def close(self) -> None:
        """Complete the file, for a caller that has no block."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def move_into(stage: Path, out: Path, names: list[str], old_names: list[str]) -> None:
    """Move finished files from a scratch folder to their artefact, dropping what was there.

    The old manifest goes first, so that at no moment a manifest stands beside files that
    it does not describe; the caller writes the new one.
    """
    from selectit_dagster.artefacts.manifest import MANIFEST

    (out / MANIFEST).unlink(missing_ok=True)
    for name in old_names:
        if name not in names:
            with contextlib.suppress(OSError):
                (out / name).unlink(missing_ok=True)
    for name in names:
        source = stage / name
        with source.open("rb+") as handle:
            os.fsync(handle.fileno())
        source.chmod(0o644)
        source.replace(out / name)
