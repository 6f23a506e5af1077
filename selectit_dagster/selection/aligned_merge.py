"""The models' scores beside their records, read in step: no join where the orders agree.

The scoring stage writes records in the dataset's order, so the n-th record of each model is
the n-th record of the dataset. That is checked id by id; where it does not hold, the caller
joins by record id instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


class OutOfStepError(Exception):
    """The scores of a model are not in the order of the records."""


class _Cursor:
    """Cuts a stream of batches into pieces of any asked size."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> pa.RecordBatch:
        """Return the next ``rows`` rows."""
        import pyarrow as pa

        parts: list[pa.RecordBatch] = []
        while rows:
            if self._rest is None or not self._rest.num_rows:
                self._rest = next(self._batches, None)
                if self._rest is None:
                    raise OutOfStepError
            head = self._rest.slice(0, rows)
            self._rest = self._rest.slice(head.num_rows)
            parts.append(head)
            rows -= head.num_rows
        if len(parts) == 1:
            return parts[0]
        return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]

    def ended(self) -> bool:
        """Tell whether nothing is left."""
        while self._rest is None or not self._rest.num_rows:
            self._rest = next(self._batches, None)
            if self._rest is None:
                return True
        return False


def in_step(
    records: Iterator[pa.RecordBatch], models: Sequence[Iterator[pa.RecordBatch]]
) -> Iterator[pa.RecordBatch]:
    """Yield the records with the columns of each model beside them.

    Parameters
    ----------
    records:
        Batches with ``record_id`` and ``position``, in the dataset's order.
    models:
        For each model batches with ``record_id``, ``score``, ``status`` and ``reason``.

    Yields
    ------
    pyarrow.RecordBatch
        ``record_id``, ``position``, and for model i ``s<i>``, ``c<i>`` and ``r<i>``.

    Raises
    ------
    OutOfStepError
        When a model has other records, or has them in another order.
    """
    import pyarrow as pa

    cursors = [_Cursor(batches) for batches in models]
    for batch in records:
        columns = {name: batch.column(name) for name in ("record_id", "position")}
        for number, cursor in enumerate(cursors):
            scored = cursor.take(batch.num_rows)
            if not scored.column("record_id").equals(columns["record_id"]):
                raise OutOfStepError
            for short, name in (("s", "score"), ("c", "status"), ("r", "reason")):
                columns[f"{short}{number}"] = scored.column(name)
        yield pa.record_batch(columns)
    if not all(cursor.ended() for cursor in cursors):
        raise OutOfStepError
