"""``scores.parquet``: the scores of every level and every arm, for all records, by id."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, Workspace, literal
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
    models = sorted(require_manifest(ranking, made_by="ranking").details["theta"])
    columns = ["r.record_id", "r.status", "r.rank", "r.score"]
    columns += [f"r.sentence_score[{literal(m)}] AS {_name(f'sentence_score/{m}')}" for m in models]
    with (
        tempfile.TemporaryDirectory(dir=target.parent) as scratch,
        Workspace(Path(scratch)) as work,
    ):
        joins = []
        for number, (arm, folder) in enumerate(sorted(selected.items())):
            chosen = work.table(folder / DATASET_FILE)
            joins.append(f"LEFT JOIN (SELECT record_id FROM {chosen}) d{number} USING (record_id)")
            columns.append(f"d{number}.record_id IS NOT NULL AS {_name(f'{arm}/selected')}")
            scored = require_manifest(folder, made_by=arm).details["cut"]["last_selected"]
            if scored is not None and (folder / CANDIDATES_FILE).exists():
                scores = work.table(folder / CANDIDATES_FILE)
                joins.append(f"LEFT JOIN {scores} c{number} USING (record_id)")
                columns.append(f"c{number}.score AS {_name(f'{arm}/score')}")
        query = f"SELECT {', '.join(columns)} FROM {work.table(ranking / RANKING_FILE)} r "
        query += " ".join(joins) + " ORDER BY r.rank NULLS LAST, r.record_id"
        with ParquetStream(work.folder / SCORES_FILE, dictionary=["status"]) as stream:
            for batch in work.batches(query):
                stream.write(batch)
        with (work.folder / SCORES_FILE).open("rb+") as handle:
            os.fsync(handle.fileno())
        (work.folder / SCORES_FILE).replace(target)
        return stream.rows


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
