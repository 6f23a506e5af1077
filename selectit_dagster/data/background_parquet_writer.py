"""A Parquet writer that compresses in a thread of its own, beside the Python work."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from selectit_dagster.artefacts.duckdb_tables import Scoped, release_unused

_PENDING = 2  # batches that may wait: memory stays flat


class BackgroundWriter(Scoped):
    """Writes record batches in order; an error in the thread is raised by the next call."""

    def __init__(self, handle: IO[bytes], schema: pa.Schema, **options: Any) -> None:  # noqa: ANN401
        self._writer = pq.ParquetWriter(handle, schema, **options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parquet")
        self._pending: deque[Future[None]] = deque()

    def write(self, batch: pa.RecordBatch) -> None:
        """Hand over one batch; wait while too many are pending."""
        while len(self._pending) >= _PENDING:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._write, batch))

    def _write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)
        release_unused()

    def _end(self, *, failed: bool) -> None:
        try:
            if not failed:
                while self._pending:
                    self._pending.popleft().result()
        finally:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._writer.close()
