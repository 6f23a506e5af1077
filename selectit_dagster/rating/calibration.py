"""How many token positions a batch should have on this device: measured once, remembered.

On a CPU small batches win, because activations stay in the cache; on a GPU big ones. A
measurement takes a few batches, so it is made only where the run is long, and its result is
kept in the user's cache, so that a second run plans the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.user_cache import remembered
from selectit_dagster.inference.backends.protocol import Backend
from selectit_dagster.rating.planned_batches import PlannedBatch, plan_by_prompt
from selectit_dagster.rating.shards import read_chunks
from selectit_dagster.rating.token_rows import RowMaker

if TYPE_CHECKING:
    from selectit_dagster.rating.scoring import ScoringRequest

_FACTORS = (0.5, 1.0, 2.0)
_SAMPLE_RECORDS = 128
# shorter runs would spend more on the measurement than it saves
_WORTH_SECONDS = 300.0
_FEWEST_BATCHES = 50
# a budget must win by this much, or the device's usual one stays
_CLEAR_GAIN = 1.05


def batch_tokens(request: ScoringRequest, rows: RowMaker, backend: Backend, records: int) -> int:
    """Return the token positions per batch: as asked, remembered, measured, or usual."""
    asked, usual = request.rating.max_batch_tokens, backend.facts.batch_tokens
    if asked is not None or request.engine == "server":  # a server batches by itself
        return asked or usual
    from selectit_dagster.inference.model_identity import model_identity

    facts = backend.facts
    state = [model_identity(request.model), facts.device, facts.dtype, facts.workers]
    measured = remembered(
        "batch-tokens", state, "batch_tokens", lambda: _measure(request, rows, backend, records)
    )
    return int(measured or usual)


def _measure(request: ScoringRequest, rows: RowMaker, backend: Backend, records: int) -> int | None:
    """Return the fastest budget on a sample of the records, None when it is not worth it."""
    sample = next(iter(read_chunks(request.records_file, _SAMPLE_RECORDS))).texts
    made = [
        row
        for row in rows.make(sample, [(i, 0) for i in range(len(sample))])
        if row.tokens is not None
    ]
    if not made:
        return None
    usual, prefixes = backend.facts.batch_tokens, rows.shared_prefixes()
    planned = plan_by_prompt(made, prefixes, usual)
    mean = sum(len(row.tokens) for row in made if row.tokens is not None) / len(made)
    tokens = records * len(rows.prompts) * mean
    # a job that is over before a measurement would be is not measured, nor timed
    if tokens < _FEWEST_BATCHES * usual * backend.facts.workers:
        return None
    if not _is_long(backend, planned, tokens):
        return None
    speed = _speed(backend, planned)
    if speed is None:
        return None
    best, fastest = usual, speed * _CLEAR_GAIN
    for factor in _FACTORS:
        budget = int(usual * factor)
        found = _speed(backend, plan_by_prompt(made, prefixes, budget))
        if found is not None and found > fastest:
            best, fastest = budget, found
    return best


def _is_long(backend: Backend, planned: Sequence[PlannedBatch], tokens: float) -> bool:
    """Tell from one batch on one worker whether a run of so many tokens is worth measuring for."""
    batch = planned[len(planned) // 2].tokens
    # the first batch also makes the backend choose its mode, which is not to be timed
    backend.rate(planned[0].tokens)
    started = time.monotonic()
    backend.rate(batch)
    seconds = time.monotonic() - started
    return tokens / batch.tokens * seconds / backend.facts.workers >= _WORTH_SECONDS


def _speed(backend: Backend, planned: Sequence[PlannedBatch]) -> float | None:
    """Return tokens per second over batches from the middle lengths; None if too large."""
    workers = backend.facts.workers
    middle = max(0, len(planned) // 2 - workers)
    some = [batch.tokens for batch in planned[middle : middle + 2 * workers]]
    halvings = backend.notes.halvings
    with ThreadPoolExecutor(workers) as pool:
        started = time.monotonic()
        list(pool.map(backend.rate, some))
        seconds = time.monotonic() - started
    if backend.notes.halvings > halvings:
        return None
    return sum(batch.tokens for batch in some) / max(seconds, 1e-9)
