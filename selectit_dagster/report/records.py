"""The best and the worst records, from the stored files.

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

from selectit_dagster.report.blocks import Distribution, Record

if TYPE_CHECKING:
    from selectit_dagster.artefacts.duckdb_tables import Workspace
    from selectit_dagster.artefacts.home import Home


@dataclass(frozen=True)
class Stored:
    """Where the scores of one ranking lie, and with which settings it was made.

    Attributes
    ----------
    models:
        Names of the scoring models.
    num_prompts:
        K, as the ranking used it: further stored prompts are left out.
    alpha:
        Weight of the disagreement between prompts.
    variant:
        ``paper`` or ``released-code``.
    """

    home: Home
    models: tuple[str, ...]
    num_prompts: int
    alpha: float
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


def overlap(first: Path, second: Path, work: Workspace) -> int:
    """Return how many record ids two selected datasets share."""
    query = (
        f"SELECT count(*) FROM {work.table(first)} SEMI JOIN {work.table(second)} USING (record_id)"
    )
    return int(str(work.row(query)[0]))


def _union(parts: list[Path], work: Workspace) -> str:
    columns = "record_id, prompt_index, probabilities, status"
    return "(" + " UNION ALL ".join(f"SELECT {columns} FROM {work.table(p)}" for p in parts) + ")"


def _rows(work: Workspace, query: str) -> list[dict[str, Any]]:
    return [row for batch in work.batches(query) for row in batch.to_pylist()]
