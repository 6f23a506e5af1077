"""Sentence level to model level to order: the streaming work behind a ranking."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import (
    ParquetStream,
    Workspace,
    move_into,
    stored_batches,
)
from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.progress import Progress
from selectit_dagster.rating import levels
from selectit_dagster.rating.score_reader import (
    STATUSES,
    NotGroupedError,
    StoredBatch,
    StoredScores,
    open_scores,
)
from selectit_dagster.selection.aligned_merge import OutOfStepError, in_step
from selectit_dagster.selection.ranking_statistics import ScoreSummary, Tally

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.selection.ranking import RankingRequest

Floats = npt.NDArray[np.float64]
# Scores that are equal on paper differ in the last bits with the order of summation (for
# instance the same ratings from other prompts); rounding lets the record id decide there.
# Stored probabilities are float32, so no real difference is that small.
SCORE_DECIMALS = 12
_ROWS = 1 << 15


# what joining by record id may take, where the scores are not in the records' order
_JOIN_MEMORY = 600 * 1000 * 1000


def fuse(request: RankingRequest, thetas: dict[str, float], out: Path, progress: Progress) -> Tally:
    """Write ``out/ranking.parquet``; see :func:`selectit_dagster.selection.ranking.rank`."""
    from selectit_dagster.selection.ranking import RANKING_FILE

    stores = open_scores(request.scores, request.num_prompts, request.num_ratings)
    records = request.records / "records.parquet"
    weights = np.array(list(thetas.values()))
    with Workspace(out) as work:
        total = int(cast(int, work.row(f"SELECT count(*) FROM {work.table(records)}")[0]))
        joined = work.folder / "joined.parquet"
        watched = _Watched(progress, total)
        try:
            beside = in_step(
                stored_batches(records, ["record_id", "position"], _ROWS),
                [_sentence_batches(store.as_stored(work), request) for store in stores],
            )
            _write_fused(beside, request, stores, weights, joined, watched)
        except (OutOfStepError, NotGroupedError):
            by_id = _joined_by_id(request, stores, records, total, work)
            _write_fused(by_id, request, stores, weights, joined, watched)
        tally = _write_sorted(request, stores, joined, work.folder / RANKING_FILE, work)
        old = read_manifest(out)
        move_into(work.folder, out, [RANKING_FILE], list(old.files) if old else [])
        progress.update(total, total)
    return tally


@dataclass
class _Watched:
    """Reports fusing as nine tenths of the work; sorting is the rest."""

    progress: Progress
    total: int

    def fused(self, rows: int) -> None:
        self.progress.update(rows * 9 // 10, self.total)


def sentence_scores(batch: StoredBatch, alpha: float, variant: str, ablation: str) -> Floats:
    """Return (n,) sentence-level scores, NaN where the record's status is not ok."""
    scores = levels.record_score(
        batch.probabilities,
        alpha=alpha,
        variant=cast(levels.Variant, variant),
        ablation=cast(levels.Ablation, ablation),
    )
    return np.where(batch.status == 0, scores, np.nan)


def _sentence_batches(
    batches: Iterator[StoredBatch], request: RankingRequest
) -> Iterator[pa.RecordBatch]:
    """Yield (record_id, score, status, reason) of one model."""
    for batch in batches:
        score = sentence_scores(batch, request.alpha, request.variant, request.ablation)
        yield _sentence_batch(batch, score)


def write_sentence_scores(
    store: StoredScores, request: RankingRequest, target: Path, work: Workspace
) -> int:
    """Write (record_id, score, status, reason) of one model; return the number of rows."""

    def write(batches: Iterator[StoredBatch]) -> int:
        with ParquetStream(target, compression="lz4", dictionary=["reason"]) as stream:
            for batch in _sentence_batches(batches, request):
                stream.write(batch)
        return stream.rows

    try:
        return write(store.as_stored(work))
    except NotGroupedError:
        return write(store.sorted(work))


def _sentence_batch(batch: StoredBatch, score: Floats) -> pa.RecordBatch:
    import pyarrow as pa

    reasons: list[str | None] = [None] * len(score)
    for index, reason in batch.reasons.items():
        reasons[index] = reason
    return pa.record_batch(
        {
            "record_id": batch.record_ids.cast(pa.string()),
            "score": pa.array(score, from_pandas=True),
            "status": pa.array(batch.status),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _not_one_to_one(
    store: StoredScores, records: Path, scored: Path, work: Workspace
) -> ArtefactError:
    """Name a record that the model's scores lack, have twice, or have without need."""
    ids, scores = work.table(records), work.table(scored)
    queries = {
        "no scores for": f"SELECT min(record_id) FROM {ids} ANTI JOIN {scores} USING (record_id)",
        "scores for the unknown": f"SELECT min(record_id) FROM {scores} ANTI JOIN {ids} "
        "USING (record_id)",
        "several scores for": "SELECT min(record_id) FROM (SELECT record_id FROM "
        f"{scores} GROUP BY record_id HAVING count(*) > 1)",
    }
    for what, query in queries.items():
        if (found := work.row(query)[0]) is not None:
            return ArtefactError(
                f"model {store.name} has {what} record {found!r}",
                hint=f"materialise uncertainty_scores/{store.name} again",
            )
    counts = [
        work.row(f"SELECT count(*), count(DISTINCT record_id) FROM {t}") for t in (ids, scores)
    ]
    (total, distinct), (rated, known) = counts
    return ArtefactError(
        f"{records} holds {total} records under {distinct} ids, and model {store.name} has scores "
        f"of {rated} records under {known} ids: they are not one to one",
        hint=f"materialise curated_dataset and uncertainty_scores/{store.name} again",
    )


def _joined_by_id(
    request: RankingRequest,
    stores: list[StoredScores],
    records: Path,
    total: int,
    work: Workspace,
) -> Iterator[pa.RecordBatch]:
    """Join the models' scores by record id, in whatever order they were stored."""
    work.allow(_JOIN_MEMORY)
    for number, store in enumerate(stores):
        target = work.folder / f"model-{number}.parquet"
        if write_sentence_scores(store, request, target, work) != total:
            raise _not_one_to_one(store, records, target, work)
    numbers = range(len(stores))
    columns = [f"m{i}.score AS s{i}, m{i}.status AS c{i}, m{i}.reason AS r{i}" for i in numbers]
    joins = [
        f"LEFT JOIN {work.table(work.folder / f'model-{i}.parquet')} m{i} USING (record_id)"
        for i in numbers
    ]
    yield from work.batches(
        f"SELECT record_id, position, {', '.join(columns)} "
        f"FROM {work.table(records)} {' '.join(joins)}",
        _ROWS,
    )


def _write_fused(
    rows: Iterator[pa.RecordBatch],
    request: RankingRequest,
    stores: list[StoredScores],
    thetas: Floats,
    target: Path,
    watched: _Watched,
) -> None:
    """Fuse the models' scores and write one row per record."""
    with ParquetStream(target, compression="lz4", dictionary=["reason"]) as stream:
        for batch in rows:
            stream.write(_fused_batch(batch, request, stores, thetas))
            watched.fused(stream.rows)


def _fused_batch(
    batch: pa.RecordBatch, request: RankingRequest, stores: list[StoredScores], thetas: Floats
) -> pa.RecordBatch:
    import pyarrow as pa

    numbers = range(len(stores))
    codes = [batch.column(f"c{i}") for i in numbers]
    for store, code in zip(stores, codes, strict=True):
        # as many rows as records, but some record without one: another has several
        if code.null_count:
            index = code.is_null().to_numpy(zero_copy_only=False).argmax()
            record = batch.column("record_id")[int(index)]
            raise ArtefactError(
                f"model {store.name} has no scores for record {record.as_py()!r}",
                hint=f"materialise uncertainty_scores/{store.name} again",
            )
    worst = np.stack([code.to_numpy(zero_copy_only=False) for code in codes]).max(axis=0)
    each = [batch.column(f"s{i}").to_numpy(zero_copy_only=False) for i in numbers]
    fused = levels.model_level(np.stack(each), thetas, cast(levels.Variant, request.variant))
    fused = np.where(worst == 0, np.round(fused, SCORE_DECIMALS), np.nan)
    return pa.record_batch(
        {
            "record_id": batch.column("record_id"),
            "position": batch.column("position"),
            "score": pa.array(fused, from_pandas=True),
            **{f"s{i}": batch.column(f"s{i}") for i in numbers},
            "status": pa.array(worst.astype(np.int8)),
            "reason": _joint_reasons(batch, stores, worst),
        }
    )


def _joint_reasons(
    batch: pa.RecordBatch, stores: list[StoredScores], worst: npt.NDArray[np.int8]
) -> pa.Array:
    """Return (n,) reasons that name each model which did not rate the record."""
    import pyarrow as pa

    reasons: list[str | None] = [None] * batch.num_rows
    for index in np.flatnonzero(worst):
        found = [(s.name, batch.column(f"r{i}")[int(index)].as_py()) for i, s in enumerate(stores)]
        reasons[index] = "; ".join(f"{name}: {text}" for name, text in found if text)
    return pa.array(reasons, pa.string())


def _write_sorted(
    request: RankingRequest, stores: list[StoredScores], joined: Path, target: Path, work: Workspace
) -> Tally:
    """Sort the fused scores and write the ranking with its ranks."""
    tie = "position DESC" if request.variant == "released-code" else "record_id"
    order = f"ORDER BY score DESC NULLS LAST, CASE WHEN score IS NULL THEN record_id END, {tie}"
    facts = work.row(f"SELECT count(score), min(score), max(score) FROM {work.table(joined)}")
    count, low, high = (float(str(fact or 0)) for fact in facts)
    tally = Tally(ScoreSummary(int(count), low, high))
    repeated = ["status", "reason", "sentence_score.key_value.key"]
    with ParquetStream(target, dictionary=repeated) as stream:
        for batch in work.batches(f"SELECT * FROM {work.table(joined)} {order}", _ROWS):
            stream.write(_ranked_batch(batch, [store.name for store in stores], tally))
    return tally


def _ranked_batch(batch: pa.RecordBatch, models: list[str], tally: Tally) -> pa.RecordBatch:
    """Return the batch in the stored schema, counting it in ``tally``."""
    import pyarrow as pa

    codes = batch.column("status").to_numpy()
    rows = np.arange(batch.num_rows)
    ranks = np.where(codes == 0, tally.records + rows + 1, 0).astype(np.int32)
    scores = batch.column("score")
    tally.records += batch.num_rows
    tally.ranked += int((codes == 0).sum())
    tally.summary.add(scores.to_numpy(zero_copy_only=False)[codes == 0])
    for index in np.flatnonzero(codes):
        record, reason = (batch.column(c)[int(index)].as_py() for c in ("record_id", "reason"))
        tally.exclude(record, STATUSES[codes[index]], reason or "")
    return pa.record_batch(
        {
            "record_id": batch.column("record_id"),
            "rank": pa.array(ranks, mask=ranks == 0),
            "score": scores,
            "sentence_score": _score_map(batch, models),
            "status": pa.array(STATUSES).take(batch.column("status")),
            "reason": batch.column("reason"),
        }
    )


def _score_map(batch: pa.RecordBatch, models: list[str]) -> pa.Array:
    """Return (n,) maps from model name to sentence-level score (null where it has none)."""
    import pyarrow as pa

    count, rows = len(models), batch.num_rows
    columns = [batch.column(f"s{i}").to_numpy(zero_copy_only=False) for i in range(count)]
    values = np.stack(columns, axis=1).reshape(-1)
    keys = pa.array(models).take(pa.array(np.tile(np.arange(count), rows)))
    offsets = pa.array(np.arange(0, (rows + 1) * count, count, dtype=np.int32))
    return pa.MapArray.from_arrays(offsets, keys, pa.array(values, from_pandas=True))
