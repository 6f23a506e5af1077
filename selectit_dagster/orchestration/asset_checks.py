"""Looks at finished artefacts before anything builds on them.

Each function reads the stored files afresh, never the engine's memory, and returns one
:class:`Inspection`. They know no Dagster; the assets turn
them into blocking checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.accounting import Account, RecordsLostError
from selectit_dagster.artefacts.manifest import Manifest, require_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.orchestration.stages.stage import Stage


@dataclass(frozen=True)
class Inspection:
    """The outcome of one look at a finished artefact."""

    name: str
    passed: bool
    message: str
    facts: dict[str, Any]


def _query(sql: str, *parameters: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401 - SQL values
    """Run one query in a fresh in-memory DuckDB, bounded in memory."""
    import duckdb

    with duckdb.connect(config={"memory_limit": "1GB", "threads": 2}) as connection:
        return connection.execute(sql, list(parameters)).fetchall()


def _inspection(name: str, passed: bool, message: str, **facts: Any) -> Inspection:  # noqa: ANN401
    return Inspection(name, bool(passed), message, facts)


def read_balance(stage: Stage, manifest: Manifest) -> Inspection:
    """Read = kept + rejected, the file holds what was kept, and ids occur once."""
    counts = manifest.counts
    path = str(stage.folder / "records.parquet")
    rows, ids = _query("select count(*), count(distinct record_id) from read_parquet(?)", path)[0]
    passed = counts["read"] == counts["kept"] + counts["rejected"] and rows == ids == counts["kept"]
    message = (
        f"read {counts['read']:,} = kept {counts['kept']:,} + rejected {counts['rejected']:,}; "
        f"{rows:,} rows, {ids:,} ids"
    )
    return _inspection("balance", passed, message, rows=rows, distinct_ids=ids)


def curation_balance(stage: Stage, manifest: Manifest) -> Inspection:
    """Every raw record was kept or is named among the dropped ones."""
    path = str(stage.folder / "records.parquet")
    rows, ids = _query("select count(*), count(distinct record_id) from read_parquet(?)", path)[0]
    with (stage.folder / "dropped.jsonl").open("rb") as handle:
        dropped = sum(1 for _ in handle)
    raw = manifest.counts["raw"]
    passed = rows == ids == manifest.counts["kept"] and raw == rows + dropped
    return _inspection(
        "balance",
        passed,
        f"raw {raw:,} = kept {rows:,} + dropped {dropped:,}; {ids:,} ids",
        rows=rows,
        dropped=dropped,
    )


def rows_match_records(stage: Stage, manifest: Manifest) -> Inspection:
    """Every curated record has one row per rating prompt, and there are no other rows."""
    records = str(stage.folder.parents[1] / "curated" / "records.parquet")
    shards = str(stage.folder / "*.parquet")
    expected, missing, foreign, wrong = _query(
        """
        with r as (select record_id from read_parquet($1)),
             s as (select record_id, count(*) n, count(distinct prompt_index) k
                   from read_parquet($2) group by 1)
        select (select count(*) from r),
               (select count(*) from r anti join s using (record_id)),
               (select count(*) from s anti join r using (record_id)),
               (select count(*) from s where n != k or n != (select max(k) from s))
        """,
        records,
        shards,
    )[0]
    passed = missing == foreign == wrong == 0
    return _inspection(
        "one_row_per_record_and_prompt",
        passed,
        f"{expected:,} records; {missing:,} without scores, {foreign:,} scored but not in the "
        f"dataset, {wrong:,} with a wrong number of prompts",
        records=expected,
        missing=missing,
        foreign=foreign,
        wrong=wrong,
    )


def finite_distributions(stage: Stage, manifest: Manifest) -> Inspection:
    """Stored distributions are finite, sum to one, and exist exactly where status is ok."""
    shards = str(stage.folder / "*.parquet")
    ok, bad_sum, misplaced = _query(
        """
        select count(*) filter (status = 'ok'),
               count(*) filter (status = 'ok' and not coalesce(
                   abs(list_sum(probabilities::float[]) - 1) < 1e-3, false)),
               count(*) filter ((status = 'ok') != (probabilities is not null))
        from read_parquet($1)
        """,
        shards,
    )[0]
    return _inspection(
        "finite_distributions",
        bad_sum == 0 and misplaced == 0,
        f"{ok:,} distributions; {bad_sum:,} not finite or not summing to one, {misplaced:,} "
        "present without status ok or absent with it",
        distributions=ok,
        not_normalised=bad_sum,
        misplaced=misplaced,
    )


def ranking_balance(stage: Stage, manifest: Manifest) -> Inspection:
    """Kept = ranked + too_long + failed, and the ranks are 1 to n without gaps."""
    records = str(stage.folder.parent / "curated" / "records.parquet")
    path = str(stage.folder / "ranking.parquet")
    kept = _query("select count(*) from read_parquet(?)", records)[0][0]
    rows, ranked, distinct, top = _query(
        "select count(*), count(rank), count(distinct rank), coalesce(max(rank), 0) "
        "from read_parquet(?)",
        path,
    )[0]
    unranked = manifest.counts.get("too_long", 0) + manifest.counts.get("failed", 0)
    passed = kept == rows == ranked + unranked and ranked == distinct == top and ranked > 0
    home = stage.folder.parent
    try:
        raw, curated = (require_manifest(home / n, made_by=n).counts for n in ("raw", "curated"))
        message = "; ".join(Account.of(raw, curated, manifest.counts).lines())
    except (ArtefactError, RecordsLostError) as error:
        passed, message = False, str(error)
    return _inspection(
        "every_record_accounted_for",
        passed,
        message,
        kept=kept,
        ranked=ranked,
        unranked=unranked,
    )


def finite_scores(stage: Stage, manifest: Manifest) -> Inspection:
    """Ranked records have a finite score; no other record has one."""
    path = str(stage.folder / "ranking.parquet")
    ranked, bad, extra = _query(
        """
        select count(rank),
               count(*) filter (rank is not null and not coalesce(isfinite(score), false)),
               count(*) filter (rank is null and score is not null)
        from read_parquet($1)
        """,
        path,
    )[0]
    return _inspection(
        "finite_scores",
        bad == 0 and extra == 0,
        f"{ranked:,} ranked; {bad:,} without a finite score, {extra:,} unranked with a score",
        ranked=ranked,
        not_finite=bad,
        unranked_with_score=extra,
    )


def subset_size(stage: Stage, manifest: Manifest) -> Inspection:
    """The subset holds as many records as it says, each once, and not none."""
    path = str(stage.folder / "dataset.parquet")
    rows, ids = _query("select count(*), count(distinct record_id) from read_parquet(?)", path)[0]
    said = manifest.counts["selected"]
    return _inspection(
        "subset_of_the_right_size",
        rows == ids == said and rows > 0,
        f"{rows:,} records, {ids:,} ids; asked for {said:,}",
        rows=rows,
        asked_for=said,
    )


def checkpoint_answers(base: ModelReference, stage: Stage, manifest: Manifest) -> Inspection:
    """The checkpoint loads over its base model and generates at least one token."""
    from selectit_dagster.tuning import checkpoint

    loaded = checkpoint.load_checkpoint(base, stage.folder)
    answer = checkpoint.answer(loaded, "Say something.", max_new_tokens=8)
    return _inspection(
        "loads_and_answers",
        isinstance(answer, str),
        f"answered {answer!r} to 'Say something.'",
        answer=answer,
    )


def every_question_scored(stage: Stage, manifest: Manifest) -> Inspection:
    """Every question that could be asked has one finite score.

    Questions that did not fit the model's context are named as ``too_long`` in the results
    and have no score.
    """
    require_manifest(stage.folder, made_by=stage.asset)
    files = [p for p in sorted(Path(stage.folder).glob("*.parquet"))]
    bad, rows = 0, 0
    for path in files:
        found = _query(
            "select count(*), count(*) filter (not coalesce(isfinite(score::double), false)) "
            "from read_parquet(?) where status = 'ok'",
            str(path),
        )[0]
        rows, bad = rows + found[0], bad + found[1]
    return _inspection(
        "every_question_scored",
        bad == 0 and rows > 0,
        f"{rows:,} questions in {len(files)} benchmarks, {bad:,} without a finite score",
        questions=rows,
        without_score=bad,
    )
