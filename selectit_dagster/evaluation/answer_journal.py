"""The journal of a benchmark under way: one line per finished batch, its values by row.

A line is written in one go and flushed to the disk, so what a killed evaluation leaves is
whole batches and at most one broken last line, which is cut off. A value is known by its
row's own key (the question's id, its sample, its content), never by the batch that it came
in, so another plan of batches takes up the same rows and mixes none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import sha256_json

if TYPE_CHECKING:
    from selectit_dagster.inference.batching import Batch, Row
    from selectit_dagster.inference.engine import Engine

Keep = Callable[[Sequence[str], Callable[[], Sequence[Any]]], list[Any]]


def kept_nowhere(keys: Sequence[str], make: Callable[[], Sequence[Any]]) -> list[Any]:
    """Make the values anew; stands where there is no journal."""
    return list(make())


class Journal:
    """Finished values by key, stored beside the results until the evaluation is whole.

    ``identity`` is what its values depend on; a journal of something else is begun anew.
    """

    def __init__(self, path: Path, identity: Any) -> None:  # noqa: ANN401 - any JSON value
        self.path = path
        self._done: dict[str, Any] = {}
        # earlier versions knew values by the number of their batch: such a journal begins anew
        header = {"identity": sha256_json(identity), "keys": "rows"}
        good = self._read(header)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = path.open("r+b" if good else "wb")
        self._handle.truncate(good)
        self._handle.seek(good)
        if not good:
            self._write(header)

    def _read(self, header: dict[str, str]) -> int:
        """Read the whole lines and return the offset after the last good one."""
        good = 0
        if not self.path.exists():
            return good
        with self.path.open("rb") as handle:
            for number, line in enumerate(handle):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    break
                whole = isinstance(value, dict) if number else value == header
                if not whole or not line.endswith(b"\n"):
                    break
                if number:
                    self._done.update(value)
                good += len(line)
        return good

    def _write(self, value: dict[str, Any]) -> None:
        self._handle.write(json.dumps(value, ensure_ascii=True).encode() + b"\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def keep(self, keys: Sequence[str], make: Callable[[], Sequence[Any]]) -> list[Any]:
        """Return the values (JSON) of ``keys``; where one is not known, make and store all."""
        if not all(key in self._done for key in keys):
            made = dict(zip(keys, make(), strict=True))
            self._write(made)
            self._done.update(made)
        return [self._done[key] for key in keys]

    def close(self) -> None:
        """Close the file; it stays for a later resume."""
        self._handle.close()


def run_rows(
    engine: Engine,
    rows: Sequence[Row],
    work: Callable[[Batch], Sequence[Any]],
    keep: Keep,
    *,
    batch_tokens: int,
    new_tokens: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """Compute every batch of ``rows`` that is not kept; return each row's value.

    ``work`` computes a batch's values (JSON), in the order of its indices; ``keep`` keeps them
    under the rows' keys; ``report`` is called with rows done.
    """
    done: dict[int, Any] = {}
    for batch in engine.plan(rows, batch_tokens, new_tokens=new_tokens):
        values = keep([rows[i].key for i in batch.indices], partial(work, batch))
        done.update(zip(batch.indices, values, strict=True))
        report(len(done))
    return [done[i] for i in range(len(rows))]
