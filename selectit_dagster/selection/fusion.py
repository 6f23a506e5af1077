"""From stored distributions to an order: a score per model and record, joined, fused, sorted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.selection.ranking import RankingRequest

Floats = npt.NDArray[np.float64]
# (n, K, R) distributions of one model to (n,) scores
Score = Callable[[npt.NDArray[np.float32]], Floats]
# Scores that are equal on paper differ in the last bits with the order of summation (for
# instance the same ratings from other prompts); rounding lets the record id decide there.
# Stored probabilities are float32, so no real difference is that small.
SCORE_DECIMALS = 12
_ROWS = 1 << 15
_JOIN_MEMORY = 400 * 1000 * 1000
_EXAMPLES = 10
_BINS = 20
_QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


@dataclass
class Tally:
    """What is counted while a ranking is written.

    ``excluded_sha256`` is the digest of the ids of all records that are not ranked, in
    order; ``summary`` holds the figures of the scores.
    """

    records: int = 0
    ranked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)
    excluded_sha256: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


def fuse(
    request: RankingRequest,
    thetas: dict[str, float],
    out: Path,
    progress: Progress,
    score: Score | None = None,
) -> Tally:
    """Write ``out/ranking.parquet``; see :func:`selectit_dagster.selection.ranking.rank`.

    ``score`` stands in for the sentence level (equations 2 to 4) as the score of one model.
    """
    from selectit_dagster.selection.ranking import RANKING_FILE

    stores = open_scores(request.scores, request.num_prompts, request.num_ratings)
    records = _rated_file(request)
    with Workspace(out) as work:
        total = int(cast(int, work.row(f"SELECT count(*) FROM {work.table(records)}")[0]))
        for number, store in enumerate(stores):
            target = work.folder / f"model-{number}.parquet"
            if _write_scores(store, score or _sentence_level(request), target, work) != total:
                raise _not_one_to_one(store, records, target, work)
            progress.update(total * (number + 1) // (len(stores) + 1), total)
        work.allow(_JOIN_MEMORY)
        target = work.folder / RANKING_FILE
        _write_sorted(request, stores, np.array(list(thetas.values())), target, work)
        tally = _tally(target)
        old = read_manifest(out)
        move_into(work.folder, out, [RANKING_FILE], list(old.files) if old else [])
        progress.update(total, total)
    return tally


def _sentence_level(request: RankingRequest) -> Score:
    """Return S_sent of one model with the request's parameters."""

    def score(p: npt.NDArray[np.float32]) -> Floats:
        return levels.record_score(
            p,
            alpha=request.alpha,
            variant=cast(levels.Variant, request.variant),
            ablation=cast(levels.Ablation, request.ablation),
        )

    return score


def _write_scores(store: StoredScores, score: Score, target: Path, work: Workspace) -> int:
    """Write (record_id, score, status, reason) of one model; return the number of rows."""

    def write(batches: Iterator[StoredBatch]) -> int:
        with ParquetStream(target, compression="lz4", dictionary=["reason"]) as stream:
            for batch in batches:
                stream.write(_scored(batch, score(batch.probabilities)))
        return stream.rows

    try:
        return write(store.as_stored(work))
    except NotGroupedError:
        return write(store.sorted(work))


def _scored(batch: StoredBatch, scores: Floats) -> pa.RecordBatch:
    import pyarrow as pa

    reasons: list[str | None] = [None] * len(scores)
    for index, reason in batch.reasons.items():
        reasons[index] = reason
    return pa.record_batch(
        {
            "record_id": batch.record_ids.cast(pa.string()),
            "score": pa.array(scores, mask=batch.status != 0),
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


def _write_sorted(
    request: RankingRequest,
    stores: list[StoredScores],
    thetas: Floats,
    target: Path,
    work: Workspace,
) -> None:
    """Join the models' scores by record id, fuse and sort them, and write the ranking."""
    records, numbers = _rated_file(request), range(len(stores))
    tables = [work.folder / f"model-{i}.parquet" for i in numbers]
    weights = levels.fusion_weights(thetas) if request.variant == "paper" else thetas
    sum_of = " + ".join(f"m{i}.score * {float(w)!r}" for i, w in zip(numbers, weights, strict=True))
    worst = "greatest(" + ", ".join(f"m{i}.status" for i in numbers) + ")"
    # the worst of the statuses, null where a model lacks the record
    status = f"CASE WHEN {' OR '.join(f'm{i}.status IS NULL' for i in numbers)} THEN NULL "
    status += f"ELSE {worst} END"
    columns = ", ".join(f"m{i}.score AS s{i}, m{i}.reason AS r{i}" for i in numbers)
    joins = " ".join(
        f"LEFT JOIN {work.table(path)} m{i} USING (record_id)" for i, path in enumerate(tables)
    )
    tie = "position DESC" if request.variant == "released-code" else "record_id"
    joined = (
        f"SELECT record_id, position, round({sum_of}, {SCORE_DECIMALS}) AS score, "
        f"{status} AS status, {columns} "
        f"FROM (SELECT record_id, position FROM {work.table(records)}) {joins}"
    )
    if request.rated is not None:
        joined = _combined(request, joined, len(stores), work)
    query = (
        f"SELECT * FROM ({joined}) ORDER BY score DESC NULLS LAST, "
        f"CASE WHEN score IS NULL THEN record_id END, {tie}"
    )
    done = 0
    repeated = ["status", "reason", "sentence_score.key_value.key"]
    with ParquetStream(target, dictionary=repeated) as stream:
        for batch in work.batches(query, _ROWS):
            if batch.column("status").null_count:
                for store, path in zip(stores, tables, strict=True):
                    lacking = f"{work.table(records)} ANTI JOIN {work.table(path)}"
                    if work.row(f"SELECT count(*) FROM {lacking} USING (record_id)")[0]:
                        raise _not_one_to_one(store, records, path, work)
            stream.write(_ranked_batch(batch, [store.name for store in stores], done))
            done += batch.num_rows


def _rated_file(request: RankingRequest) -> Path:
    return (request.rated or request.records) / "records.parquet"


def _combined(request: RankingRequest, joined: str, models: int, work: Workspace) -> str:
    """Return the query that makes one row per record of those of its rated texts."""
    rule = {
        "mean": "avg({0})",
        "min": "min({0})",
        "last": "arg_max({0}, part)",
        # the chosen answer is the first part
        "margin": "sum(CASE part WHEN 0 THEN {0} ELSE -{0} END)",
    }[request.combine]
    columns = [f"{rule.format(f's{i}')} AS s{i}, max(r{i}) AS r{i}" for i in range(models)]
    score = f"CASE WHEN max(status) = 0 THEN round({rule.format('score')}, {SCORE_DECIMALS}) END"
    return (
        f"SELECT parent AS record_id, min(position) AS position, {score} AS score, "
        f"CASE WHEN count(status) = count(*) THEN max(status) END AS status, "
        f"{', '.join(columns)}, list(score ORDER BY part) AS parts FROM ({joined}) JOIN "
        f"(SELECT record_id, parent, part FROM {work.table(_rated_file(request))}) "
        "USING (record_id) GROUP BY parent"
    )


def _ranked_batch(batch: pa.RecordBatch, models: list[str], done: int) -> pa.RecordBatch:
    """Return the batch in the stored schema; ``done`` rows came before."""
    import pyarrow as pa

    codes = batch.column("status").to_numpy()
    ranks = np.arange(done + 1, done + batch.num_rows + 1, dtype=np.int32)
    reasons: list[str | None] = [None] * batch.num_rows
    for index in np.flatnonzero(codes):
        found = [(n, batch.column(f"r{i}")[int(index)].as_py()) for i, n in enumerate(models)]
        reasons[index] = "; ".join(f"{name}: {text}" for name, text in found if text)
    # the scores of the rated texts, where those are not the records
    parts = {"parts": batch.column("parts")} if "parts" in batch.schema.names else {}
    return pa.record_batch(
        {
            "record_id": batch.column("record_id"),
            "rank": pa.array(ranks, mask=codes != 0),
            "score": batch.column("score"),
            "sentence_score": _score_map(batch, models),
            "status": pa.array(STATUSES).take(batch.column("status")),
            "reason": pa.array(reasons, pa.string()),
            **parts,
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


def _tally(ranking: Path) -> Tally:
    """Count a written ranking; records that are not ranked lie last, by record id."""
    tally = Tally()
    scores: list[Floats] = []
    excluded = hashlib.sha256()
    for batch in stored_batches(ranking, ["record_id", "score", "status", "reason"], _ROWS):
        ranked = batch.filter(batch.column("score").is_valid())
        scores.append(ranked.column("score").to_numpy())
        tally.records += batch.num_rows
        tally.ranked += ranked.num_rows
        for row in batch.filter(batch.column("score").is_null()).select([0, 2, 3]).to_pylist():
            mark = "\n" if tally.statuses else ""
            excluded.update((mark + repr(row["record_id"])).encode())
            tally.statuses[row["status"]] += 1
            if len(tally.examples) < _EXAMPLES:
                tally.examples.append({**row, "reason": row["reason"] or ""})
    tally.excluded_sha256 = excluded.hexdigest()
    tally.summary = _summary(np.concatenate(scores or [np.empty(0)]))
    return tally


def _summary(scores: Floats) -> dict[str, Any]:
    """Return minimum, quantiles, mean, spread and histogram; nothing where there is no score."""
    if not scores.size:
        return {}
    counts, edges = np.histogram(scores, _BINS)
    quantiles = np.quantile(scores, list(_QUANTILES.values()))
    return {
        "min": float(scores.min()),
        "max": float(scores.max()),
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        **dict(zip(_QUANTILES, map(float, quantiles), strict=True)),
        "distinct": int(np.unique(scores).size),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }
