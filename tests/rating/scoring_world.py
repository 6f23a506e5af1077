"""A small dataset, and a backend whose ratings are a function of the tokens alone."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.experiment import RatingSection, ScoringModel
from selectit_dagster.inference.backends.protocol import (
    BackendFacts,
    BackendNotes,
    BatchScores,
    TokenBatch,
)
from selectit_dagster.inference.failures import RowRetries
from selectit_dagster.rating.scoring import ScoringRequest

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "Paris", "7", "words")


def some_records(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "record_id": f"r{seed}-{i}",
            "instruction": f"{i} " + " ".join(rng.choice(WORDS, rng.integers(1, 8))),
            "input": " ".join(rng.choice(WORDS, 2)) if rng.random() < 0.4 else "",
            "response": " ".join(rng.choice(WORDS, rng.integers(1, 30))),
        }
        for i in range(count)
    ]


def write_records(folder: Path, rows: list[dict[str, str]]) -> Path:
    write_parquet(folder / "records.parquet", pa.Table.from_pylist(rows))
    return folder


def wait_for_company(log: Path, processes: int, seconds: float = 120.0) -> None:
    """Wait until so many processes have written a line each."""
    deadline = time.monotonic() + seconds
    while len({line.split()[-1] for line in log.read_text().splitlines()}) < processes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"there are no {processes} processes")
        time.sleep(0.05)


class HashedBackend:
    """Rates each row by a hash of its tokens, so any batching must give the same.

    ``calls`` counts rated rows by their tokens. ``log`` is a file that gets a line a batch,
    its rows and the process, for counting across processes; nothing is rated before
    ``company`` processes are at it. ``most`` is how many positions fit into its memory.
    """

    def __init__(
        self,
        *,
        ratings: int = 5,
        delay: float = 0.0,
        log: Path | None = None,
        most: float = float("inf"),
        broken: Sequence[int] = (),
        company: int = 1,
    ) -> None:
        self.facts = BackendFacts(100, "float32", "cpu", workers=2, batch_tokens=256)
        self.notes = BackendNotes("hashed")
        self.ratings, self.delay, self.log, self.most = ratings, delay, log, most
        self.broken, self.company = set(broken), company
        self.calls: dict[bytes, int] = {}
        self.sizes: list[int] = []
        self._lock = threading.Lock()
        self._retries = RowRetries(lambda: None)

    def rate(self, batch: TokenBatch) -> BatchScores:
        found = self._retries.score(batch, self.rate_rows, self.ratings)
        self.notes.halvings = self._retries.halvings
        return found

    def rate_rows(self, batch: TokenBatch) -> np.ndarray:
        if self.log is not None:
            with self.log.open("a") as handle:
                handle.write(f"{len(batch)} {os.getpid()}\n")
            wait_for_company(self.log, self.company)
        if batch.positions > self.most:
            raise MemoryError("no room")
        time.sleep(self.delay)
        rows = []
        with self._lock:
            self.sizes.append(len(batch))
            for index in range(len(batch)):
                content = batch.row(index).astype(np.int32).tobytes()
                self.calls[content] = self.calls.get(content, 0) + 1
                rows.append(self.log_p(content))
        if any(not np.isfinite(row).all() and np.isnan(row[0]) for row in rows) and len(batch) > 1:
            raise RuntimeError("a row of this batch is broken")
        return np.stack(rows)

    def log_p(self, content: bytes) -> np.ndarray:
        number = zlib.crc32(content)
        if number % 97 in self.broken:
            return np.full(self.ratings, np.nan, dtype=np.float32)
        logits = np.random.default_rng(number).normal(size=self.ratings + 1) * 2
        log_p = logits - np.log(np.exp(logits).sum())
        return log_p[: self.ratings].astype(np.float32)

    def peak_memory_bytes(self) -> int:
        return 1


def request_for(records: Path, model: Path, **rating: object) -> ScoringRequest:
    chosen = {"max_batch_tokens": 256, **rating}
    return ScoringRequest(
        records,
        ScoringModel(name="tiny", path=str(model), device="cpu", dtype="float32"),
        RatingSection(**chosen),
    )
