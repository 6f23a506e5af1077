"""``scores.parquet``: the scores of every level and every arm, for all records, by id."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from selectit_dagster.artefacts.duckdb_tables import (
    ParquetStream,
    Workspace,
    literal,
    stored_batches,
)
from selectit_dagster.artefacts.files import atomic_path
from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.selection.dataset_writer import DATASET_FILE
from selectit_dagster.selection.difference import CANDIDATES_FILE
from selectit_dagster.selection.ranking import RANKING_FILE

SCORES_FILE = "scores.parquet"


def write_score_table(ranking: Path, selected: Mapping[str, Path], target: Path) -> int:
    """Write one row per record and return the number of rows.

    Columns: ``record_id``, ``status``, ``rank``, ``score`` (S_model), ``sentence_score/<model>``
    (S_sent), and per arm ``<arm>/selected`` and, for arms with a score, ``<arm>/score``.

    Parameters
    ----------
    ranking:
        Folder of the ranking.
    selected:
        The folders of the selected datasets by arm.

    Raises
    ------
    UserError
        When there is no ranking.
    """
    if not (ranking / RANKING_FILE).exists():
        raise UserError(
            f"{ranking} holds no ranking, so there are no scores of all records",
            hint="run the experiment up to ranking",
        )
    import pyarrow as pa

    models = sorted(require_manifest(ranking, made_by="ranking").details["theta"])
    with (
        tempfile.TemporaryDirectory(dir=target.parent) as scratch,
        Workspace(Path(scratch)) as work,
    ):
        table = f"{work.table(ranking / RANKING_FILE)} r"
        columns = ["r.record_id", "r.status", "r.rank", "r.score"]
        columns += [
            f"r.sentence_score[{literal(m)}] AS {_name(f'sentence_score/{m}')}" for m in models
        ]
        parts = [_in_order(columns, table, work, 0)]
        # an arm at a time: the memory of a join of all would grow with the number of arms
        for number, (arm, folder) in enumerate(sorted(selected.items()), 1):
            chosen = f"(SELECT record_id FROM {work.table(folder / DATASET_FILE)})"
            joined = f"{table} LEFT JOIN {chosen} d USING (record_id)"
            columns = [f"d.record_id IS NOT NULL AS {_name(f'{arm}/selected')}"]
            scored = require_manifest(folder, made_by=arm).details["cut"]["last_selected"]
            if scored is not None and (folder / CANDIDATES_FILE).exists():
                joined += f" LEFT JOIN {work.table(folder / CANDIDATES_FILE)} c USING (record_id)"
                columns.append(f"c.score AS {_name(f'{arm}/score')}")
            parts.append(_in_order(columns, joined, work, number))
        with atomic_path(target) as path, ParquetStream(path, dictionary=["status"]) as stream:
            for batches in zip(*(stored_batches(part, None) for part in parts), strict=True):
                arrays = [column for batch in batches for column in batch.columns]
                names = [name for batch in batches for name in batch.schema.names]
                stream.write(pa.record_batch(arrays, names=names))
        return stream.rows


def _in_order(columns: list[str], table: str, work: Workspace, number: int) -> Path:
    """Write columns of a table that has the ranking as ``r``, in its order."""
    path = work.folder / f"part-{number}.parquet"
    query = f"SELECT {', '.join(columns)} FROM {table} ORDER BY r.rank NULLS LAST, r.record_id"
    with ParquetStream(path, compression="lz4") as stream:
        for batch in work.batches(query):
            stream.write(batch)
    return path


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
