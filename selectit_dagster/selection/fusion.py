"""From stored distributions to an order: a score per model and record, joined, fused, sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import (
    ParquetStream,
    Workspace,
    literal,
    move_into,
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


def fuse(
    request: RankingRequest,
    thetas: dict[str, float],
    out: Path,
    progress: Progress,
    score: Score | None = None,
) -> Path:
    """Write the ranking into ``out`` and return the file; see :func:`.ranking.rank`.

    ``score`` stands in for the sentence level (equations 2 to 4) as the score of one model.
    """
    from selectit_dagster.selection.ranking import RANKING_FILE

    stores = open_scores(request.scores, request.num_prompts, request.num_ratings)
    records = _rated_file(request)
    with Workspace(out) as work:
        total = work.row(f"SELECT count(*) FROM {work.table(records)}")[0]
        for number, store in enumerate(stores):
            target = work.folder / f"model-{number}.parquet"
            if _write_scores(store, score or request.record_scores, target, work) != total:
                raise _not_one_to_one(store, records, target, work)
            progress.update(total * (number + 1) // (len(stores) + 1), total)
        work.allow(_JOIN_MEMORY)
        _write_sorted(request, stores, thetas, work.folder / RANKING_FILE, work)
        old = read_manifest(out)
        move_into(work.folder, out, [RANKING_FILE], list(old.files) if old else [])
        progress.update(total, total)
    return out / RANKING_FILE


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
    thetas: dict[str, float],
    target: Path,
    work: Workspace,
) -> None:
    """Join the models' scores by record id, fuse and sort them, and write the ranking."""
    import pyarrow as pa

    records, numbers = _rated_file(request), range(len(stores))
    tables = [work.folder / f"model-{i}.parquet" for i in numbers]
    done = 0
    repeated = ["status", "reason", "sentence_score.key_value.key"]
    with ParquetStream(target, dictionary=repeated) as stream:
        query = _ranking_query(request, tables, thetas, work)
        for batch in work.batches(query, _ROWS, as_stored=True):
            if batch.column("status").null_count:
                for store, path in zip(stores, tables, strict=True):
                    lacking = f"{work.table(records)} ANTI JOIN {work.table(path)}"
                    if work.row(f"SELECT count(*) FROM {lacking} USING (record_id)")[0]:
                        raise _not_one_to_one(store, records, path, work)
            ranks = np.arange(done + 1, done + batch.num_rows + 1, dtype=np.int32)
            without = batch.column("score").is_null().to_numpy(zero_copy_only=False)
            stream.write(batch.add_column(1, "rank", pa.array(ranks, mask=without)))
            done += batch.num_rows


def _ranking_query(
    request: RankingRequest, tables: list[Path], thetas: dict[str, float], work: Workspace
) -> str:
    """Return the query of all records, best first, but for their ranks.

    The status is the worst of the models', null where a model lacks the record.
    """
    given = np.array(list(thetas.values()))
    weights = levels.fusion_weights(given) if request.variant == "paper" else given
    numbers = range(len(tables))
    sum_of = " + ".join(f"m{i}.score * {float(w)!r}" for i, w in zip(numbers, weights, strict=True))
    known = " + ".join(f"m{i}.status" for i in numbers)
    worst = "greatest(" + ", ".join(f"m{i}.status" for i in numbers) + ")"
    columns = ", ".join(f"m{i}.score AS s{i}, m{i}.reason AS r{i}" for i in numbers)
    joins = " ".join(
        f"LEFT JOIN {work.table(path)} m{i} USING (record_id)" for i, path in enumerate(tables)
    )
    query = (
        f"SELECT record_id, position, round({sum_of}, {SCORE_DECIMALS}) AS score, "
        f"CASE WHEN {known} IS NOT NULL THEN {worst} END AS status, {columns} "
        f"FROM (SELECT record_id, position FROM {work.table(_rated_file(request))}) {joins}"
    )
    if request.rated is not None:
        query = _combined(request, query, len(tables), work)
    names = [literal(name) for name in thetas]
    reasons = [f"{literal(f'{name}: ')} || nullif(r{i}, '')" for i, name in enumerate(thetas)]
    tie = "position DESC" if request.variant == "released-code" else "record_id"
    # texts and maps are made of sorted rows: in the sort they would take memory
    return (
        "SELECT record_id, score, "
        f"map([{', '.join(names)}], [{', '.join(f's{i}' for i in numbers)}]) AS sentence_score, "
        f"[{', '.join(map(literal, STATUSES))}][status + 1] AS status, "
        f"CASE WHEN status > 0 THEN concat_ws('; ', {', '.join(reasons)}) END AS reason"
        f"{', parts' if request.rated is not None else ''} FROM (SELECT * FROM ({query}) "
        f"ORDER BY score DESC NULLS LAST, CASE WHEN score IS NULL THEN record_id END, {tie})"
    )


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
