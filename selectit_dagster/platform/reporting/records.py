"""Records from the stored files: the best, the worst, and a sample for the plots.

Only the rows that are shown are read into memory, whatever the size of the dataset.
"""

# ruff: noqa: S608 - table expressions come from Workspace.table, which escapes paths; the
# rest are numbers
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from selectit_dagster.platform.reporting.blocks import Distribution, Record

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.home import Home
    from selectit_dagster.selection.columnar import Workspace

Floats = npt.NDArray[np.float64]
_SAMPLE = 20_000


@dataclass(frozen=True)
class Stored:
    """Where the scores of one ranking lie, and with which settings it was made.

    Attributes
    ----------
    models:
        Names of the scoring models.
    num_prompts:
        K, as the ranking used it: further stored prompts are left out.
    variant:
        ``paper`` or ``released-code``.
    """

    home: Home
    models: tuple[str, ...]
    num_prompts: int
    variant: Literal["paper", "released-code"]

    @property
    def ranking(self) -> Path:
        """The ranking's file."""
        return self.home.ranking / "ranking.parquet"

    @property
    def records(self) -> Path:
        """The curated records' file."""
        return self.home.curated / "records.parquet"

    def parts(self, model: str) -> list[Path]:
        """The files with one model's distributions."""
        return sorted(self.home.scores(model).glob("part-*.parquet"))


@dataclass(frozen=True)
class Sample:
    """Ranked records for the plots, n of ``total``, drawn by the hash of their ids.

    Attributes
    ----------
    rank, score, length:
        (n,) rank, fused score, characters of the response.
    sentence:
        Per model (n,) sentence-level scores.
    tokens:
        Per model (n, K) token-level scores, NaN where a prompt has none.
    """

    total: int
    rank: Floats
    score: Floats
    length: Floats
    sentence: dict[str, Floats]
    tokens: dict[str, Floats]


def extremes(stored: Stored, count: int, work: Workspace) -> tuple[list[Record], list[Record]]:
    """Return the ``count`` best and worst ranked records, best first and worst first.

    With fewer than twice ``count`` ranked records no record is in both lists.
    """
    ranking = work.table(stored.ranking)
    ranked = int(str(work.row(f"SELECT count(rank) FROM {ranking}")[0]))
    count = min(count, (ranked + 1) // 2)
    chosen = f"rank <= {count} OR rank > {max(count, ranked - count)}"
    rows = _rows(
        work,
        f"SELECT record_id, rank, score, sentence_score FROM {ranking} WHERE {chosen} "
        "ORDER BY rank",
    )
    ids = f"(SELECT record_id FROM {ranking} WHERE {chosen})"
    texts = {
        row["record_id"]: row
        for row in _rows(
            work,
            "SELECT record_id, instruction, input, response FROM "
            f"{work.table(stored.records)} SEMI JOIN {ids} USING (record_id)",
        )
    }
    answers: dict[str, list[Distribution]] = {}
    for model in stored.models:
        for record_id, entry in _distributions(stored, model, ids, work):
            answers.setdefault(record_id, []).append(entry)
    records = [_record(row, texts, answers) for row in rows]
    return records[:count], records[count:][::-1]


def _record(
    row: dict[str, Any], texts: dict[str, dict[str, Any]], answers: dict[str, list[Distribution]]
) -> Record:
    record_id = row["record_id"]
    text = texts.get(record_id, {})
    return Record(
        record_id=record_id,
        rank=row["rank"],
        score=row["score"],
        sentence_scores=dict(row["sentence_score"] or []),
        instruction=text.get("instruction") or "",
        input=text.get("input") or "",
        response=text.get("response") or "",
        distributions=answers.get(record_id, []),
    )


def _distributions(
    stored: Stored, model: str, ids: str, work: Workspace
) -> Iterable[tuple[str, Distribution]]:
    """Yield (record id, distribution) of one model for the records in the relation ``ids``."""
    from selectit_dagster.rating.levels import base_rating, token_level

    if not stored.parts(model):
        return
    rows = _rows(
        work,
        f"SELECT record_id, prompt_index, probabilities FROM {_union(stored.parts(model), work)} "
        f"SEMI JOIN {ids} USING (record_id) WHERE status = 'ok' "
        f"AND prompt_index < {stored.num_prompts} ORDER BY prompt_index",
    )
    for row in rows:
        values = np.array(row["probabilities"], dtype=np.float64)
        yield (
            row["record_id"],
            Distribution(
                model=model,
                prompt=row["prompt_index"] + 1,
                probabilities=values.tolist(),
                rating=int(base_rating(values)),
                token_score=float(token_level(values, stored.variant)),
            ),
        )


def sample(stored: Stored, work: Workspace, limit: int = _SAMPLE) -> Sample | None:
    """Return up to ``limit`` ranked records for the plots; None when none is ranked."""
    ranking = work.table(stored.ranking)
    total = int(str(work.row(f"SELECT count(rank) FROM {ranking}")[0]))
    if total == 0:
        return None
    drawn = (
        f"(SELECT * FROM {ranking} WHERE rank IS NOT NULL "
        f"ORDER BY hash(record_id), record_id LIMIT {limit})"
    )
    table = _table(
        work,
        f"SELECT record_id, rank, score, sentence_score, length(response) AS length FROM {drawn} "
        f"JOIN {work.table(stored.records)} USING (record_id) ORDER BY record_id",
    )
    sentences = [dict(entry or []) for entry in table.column("sentence_score").to_pylist()]
    return Sample(
        total=total,
        rank=_floats(table, "rank"),
        score=_floats(table, "score"),
        length=_floats(table, "length"),
        sentence={
            model: np.array([entry.get(model, np.nan) for entry in sentences], np.float64)
            for model in stored.models
        },
        tokens={
            model: _token_scores(stored, model, drawn, table.num_rows, work)
            for model in stored.models
        },
    )


def _token_scores(stored: Stored, model: str, drawn: str, count: int, work: Workspace) -> Floats:
    """Return (n, K) token-level scores of the drawn records, in the order of their ids."""
    from selectit_dagster.rating.levels import token_level

    scores = np.full((count, stored.num_prompts), np.nan)
    if not stored.parts(model):
        return scores
    table = _table(
        work,
        "SELECT row, prompt_index, probabilities FROM "
        f"{_union(stored.parts(model), work)} JOIN (SELECT record_id, "
        f"row_number() OVER (ORDER BY record_id) - 1 AS row FROM {drawn}) USING (record_id) "
        f"WHERE status = 'ok' AND prompt_index < {stored.num_prompts}",
    )
    if table.num_rows:
        values = np.array(table.column("probabilities").to_pylist(), np.float64)
        rows = table.column("row").to_numpy().astype(np.int64)
        prompts = table.column("prompt_index").to_numpy().astype(np.int64)
        scores[rows, prompts] = token_level(values, stored.variant)
    return scores


def overlap(first: Path, second: Path, work: Workspace) -> int:
    """Return how many record ids two selected datasets share."""
    query = (
        f"SELECT count(*) FROM {work.table(first)} SEMI JOIN {work.table(second)} USING (record_id)"
    )
    return int(str(work.row(query)[0]))


def _union(parts: list[Path], work: Workspace) -> str:
    columns = "record_id, prompt_index, probabilities, status"
    return "(" + " UNION ALL ".join(f"SELECT {columns} FROM {work.table(p)}" for p in parts) + ")"


def _table(work: Workspace, query: str) -> pa.Table:
    import pyarrow as pa

    batches = list(work.batches(query))
    return pa.Table.from_batches(batches) if batches else pa.table({})


def _rows(work: Workspace, query: str) -> list[dict[str, Any]]:
    return [row for batch in work.batches(query) for row in batch.to_pylist()]


def _floats(table: pa.Table, name: str) -> Floats:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), np.float64)
