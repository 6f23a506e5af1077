"""One scoring run: chunks ready ahead of the model, batches in flight, parts written.

Three things go on at once: a thread reads and tokenises the next chunk, the backend's
workers rate batches, and this thread writes down what they return.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import Backend, Closing, local_backend
from selectit_dagster.progress import Progress
from selectit_dagster.rating.planned_batches import PlannedBatch, RatedBatch
from selectit_dagster.rating.rating_tokens import find_rating_tokens
from selectit_dagster.rating.score_folder import OnMismatch, ScoreFolder
from selectit_dagster.rating.score_journal import Journal, journal_name
from selectit_dagster.rating.score_store import part_name, read_index, write_part
from selectit_dagster.rating.shards import (
    ChunkMaker,
    ChunkWork,
    RecordChunk,
    count_records,
    read_chunks,
    text_key,
)
from selectit_dagster.rating.token_rows import RowMaker, row_maker

if TYPE_CHECKING:
    from selectit_dagster.rating.adaptive import StoppingRule
    from selectit_dagster.rating.scoring import ScoringRequest

Flying = dict[Future[RatedBatch], tuple[ChunkWork, PlannedBatch]]

_CHUNKS_AHEAD = 1
_CHUNK_RECORDS = (1024, 4096)
_RATED_RATINGS = 5


def open_run(
    request: ScoringRequest,
    folder: ScoreFolder,
    progress: Progress,
    backend: Backend | None,
    on_mismatch: OnMismatch,
) -> Run:
    """Check everything that can be checked without the model, then load it.

    Raises
    ------
    UserError
        When the records, prompts, tokenizer or model cannot be used.
    """
    from selectit_dagster.rating.calibration import batch_tokens

    records = count_records(request.records_file)
    if not records:
        raise UserError(f"{request.records_file} holds no records", hint="check the dataset")
    rating = request.rating
    rows, warnings = row_maker(request)
    rating_ids = find_rating_tokens(rows.encoder, rows.contexts(), rating.num_ratings)
    if rating.prompts is None and rating.num_ratings != _RATED_RATINGS:
        warnings.append(
            f"the built-in rating prompts ask for 1 to {_RATED_RATINGS}, but num_ratings is "
            f"{rating.num_ratings}: give prompts of your own"
        )
    if backend is None:
        backend = backend_of(request, rating_ids)
    budget = batch_tokens(request, rows, backend, records)
    chunk = int(np.clip(budget // 8, *_CHUNK_RECORDS))
    plan = {"device": backend.facts.device, "batch_tokens": budget, "chunk_records": chunk}
    plan = folder.open(plan, on_mismatch)
    if rating.max_batch_tokens is not None:  # also where a run that was interrupted goes on
        plan["batch_tokens"] = budget
    return Run(request, folder, progress, backend, rows, rating_ids, records, plan, warnings)


def backend_of(request: ScoringRequest, rating_ids: tuple[int, ...]) -> Backend:
    """Return what runs the request's model: this process, a server, or a cluster."""
    if request.engine == "server":
        from selectit_dagster.inference.backends.server import ServerBackend

        return ServerBackend(request.model, rating_ids)
    if request.engine == "ray":
        from selectit_dagster.inference.backends.ray import RayBackend

        return RayBackend(request.model, request.ray, rating_ids)
    from selectit_dagster.inference.model_loading import load_model

    return local_backend(load_model(request.model), rating_ids)


@dataclass
class Run:
    """Rates all chunks of a request; see the module's docstring.

    ``rule`` stops asking about records that cannot reach the cut (None: every prompt).
    """

    request: ScoringRequest
    folder: ScoreFolder
    progress: Progress
    backend: Backend
    rows: RowMaker
    rating_ids: tuple[int, ...]
    records: int
    plan: dict[str, Any]
    warnings: list[str]
    rule: StoppingRule | None = None
    counts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    positions: int = 0
    busy_seconds: float = 0.0
    done: int = 0
    failed: dict[int, int] = field(default_factory=dict)
    started: float = 0.0

    @property
    def digests(self) -> list[str]:
        """The prompts' digests."""
        return list(self.folder.fingerprint["prompts"])

    # --- the run ------------------------------------------------------------------------------

    def rate_all(self) -> None:
        """Rate every chunk that has no part yet, in order."""
        workers = self.backend.facts.workers
        self.started = time.monotonic()
        with (
            ThreadPoolExecutor(workers, "rate") as pool,
            ThreadPoolExecutor(1, "prepare") as ahead,
        ):
            try:
                self._pump(pool, ahead, workers + 2)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                ahead.shutdown(cancel_futures=True)
                raise
            finally:
                if isinstance(self.backend, Closing):
                    self.backend.close()
        self.busy_seconds = time.monotonic() - self.started

    def _pump(self, pool: ThreadPoolExecutor, ahead: ThreadPoolExecutor, most: int) -> None:
        flying: Flying = {}
        for work in self._prepared(ahead):
            self.counts["reused"] += work.reused
            self.counts["resumed"] += work.resumed
            self._advance(work.ratings.status.size - work.pending)
            self.watch_failures(work)
            rounds = [work.batches] if self.rule is None else self.rule.rounds(work)
            for batches in rounds:
                for batch in batches:
                    flying[pool.submit(self._rate, batch)] = work, batch
                    while len(flying) >= most:
                        self._collect(flying)
                while self.rule is not None and flying:
                    self._collect(flying)
            if work.path is None and not work.pending:
                self._save(work)
        while flying:
            self._collect(flying)

    def _rate(self, batch: PlannedBatch) -> RatedBatch:
        return RatedBatch.of(self.backend.rate(batch.tokens))

    def _collect(self, flying: Flying) -> None:
        """Wait for a batch, write it down, and save its chunk when it was the last."""
        finished, _ = wait(flying, return_when=FIRST_COMPLETED)
        for future in finished:
            work, batch = flying.pop(future)
            self._journal(work)
            rated = future.result()
            work.take(batch, rated)
            if rated.reasons:
                self.watch_failures(work)
            self.counts["scored"] += len(batch.targets)
            self.tokens += batch.tokens.tokens
            self.positions += batch.tokens.positions
            self._advance(len(batch.targets))
            if self.rule is None and not work.pending:
                self._save(work)

    def watch_failures(self, work: ChunkWork) -> None:
        """Count a shard's failed records; stop above the share that is allowed.

        Raises
        ------
        UserError
            Naming a reason. What was rated is kept.
        """
        failed = work.failed_records()
        self.failed[work.index] = len(failed)
        count, limit = sum(self.failed.values()), self.request.rating.max_failed_share
        if failed and count > limit * self.records:
            record, reason = next(iter(failed.items()))
            raise UserError(
                f"{count:,} of {self.records:,} records failed so far, more than the "
                f"{limit:.1%} that rating.max_failed_share allows; "
                f"{work.ratings.record_ids[record]}: {reason}",
                hint="what was rated is kept: mend the cause, lower rating.max_batch_tokens where "
                "memory ended, or raise rating.max_failed_share, and run again",
            )

    def _journal(self, work: ChunkWork) -> None:
        if work.journal is None:
            path = self.folder.path / journal_name(work.index)
            work.journal = Journal(path, self.folder.engine, self.digests)

    def _prepared(self, ahead: ThreadPoolExecutor) -> Iterator[ChunkWork]:
        """Yield the chunks that have no part yet; the next one is made ready meanwhile."""
        ready: deque[Future[ChunkWork]] = deque()
        path, size = self.request.records_file, self.plan["chunk_records"]
        audited = self.folder.path / ".audit" / "exact"
        source = self.folder.sources(*([audited] if self.rule else []))
        num_ratings, budget = self.request.rating.num_ratings, self.plan["batch_tokens"]
        maker = ChunkMaker(self.rows, num_ratings, budget, source)
        for chunk in read_chunks(path, size):
            if self._is_stored(chunk):
                self.counts["resumed"] += len(chunk.record_ids) * len(self.digests)
                self._advance(len(chunk.record_ids) * len(self.digests))
                continue
            journal = self.folder.path / journal_name(chunk.index)
            ready.append(ahead.submit(maker.prepare, chunk, journal))
            if len(ready) > _CHUNKS_AHEAD:
                yield ready.popleft().result()
        while ready:
            yield ready.popleft().result()

    def _is_stored(self, chunk: RecordChunk) -> bool:
        """Tell whether the chunk has its part; a kill may have left the journal beside it."""
        if not self._has_part(chunk):
            return False
        (self.folder.path / journal_name(chunk.index)).unlink(missing_ok=True)
        return True

    def _has_part(self, chunk: RecordChunk) -> bool:
        index = read_index(self.folder.path / part_name(chunk.index))
        return (
            index is not None
            and index.engine == self.folder.engine
            and index.prompts == self.digests
            and index.keys == [text_key(text) for text in chunk.texts]
        )

    def _save(self, work: ChunkWork) -> None:
        work.path = self.folder.path / part_name(work.index)
        write_part(work.path, work.ratings, self.folder.engine, self.digests)
        if work.journal is not None:
            work.journal.remove()
        (self.folder.path / journal_name(work.index)).unlink(missing_ok=True)

    def _advance(self, rows: int) -> None:
        self.done += rows
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.progress.update(
            self.done,
            self.records * len(self.digests),
            records_per_second=self.counts["scored"] / len(self.digests) / seconds,
            tokens_per_second=self.tokens / seconds,
            memory_gb=self.backend.peak_memory_bytes() / 1e9,
        )

    # --- what it was like ---------------------------------------------------------------------

    def details(self, seconds: float) -> dict[str, Any]:
        """Return what a page or a report shows of the run."""
        facts, notes = self.backend.facts, self.backend.notes
        rate = 1.0 / max(self.busy_seconds, 1e-9)
        warnings = [*self.warnings, *notes.warnings]
        if notes.halvings:
            warnings.append(
                f"{notes.halvings} batches did not fit into memory and were halved: "
                "set rating.max_batch_tokens lower"
            )
        if facts.dtype not in ("float32", "unknown"):
            warnings.append(
                f"probabilities in {facts.dtype} depend a little on the batch's shape; "
                "float32 does not"
            )
        return {
            "parameters": facts.parameters,
            "revision": facts.revision,
            "rating_token_ids": list(self.rating_ids),
            "dtype": facts.dtype,
            "device": facts.device,
            "workers": facts.workers,
            "way": notes.mode,
            "linear_layers": facts.linear_layers,
            "batch_tokens": self.plan["batch_tokens"],
            "max_length": self.rows.max_length,
            "prefix_tokens": [len(prefix) for prefix in self.rows.shared_prefixes()],
            "prompts_per_second": self.counts["scored"] * rate,
            "tokens_per_second": self.tokens * rate,
            "tokens": self.tokens,
            "token_positions": self.positions,
            "seconds": seconds,
            "peak_memory_bytes": self.backend.peak_memory_bytes(),
            "weights_bytes": facts.weights_bytes,
            "warnings": warnings,
            **notes.details,
        }
