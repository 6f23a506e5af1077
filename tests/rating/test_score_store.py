"""Score files: what is written is read back, by this project and by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.manifest import write_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.rating import score_store
from selectit_dagster.rating.score_store import FAILED, OK, TOO_LONG, Ratings


def some_ratings(records: int = 4, prompts: int = 3, ratings: int = 5) -> Ratings:
    made = Ratings.empty(
        [f"r{i}" for i in range(records)], [f"{i:032x}" for i in range(records)], prompts, ratings
    )
    made.probabilities[:] = np.random.default_rng(0).dirichlet(np.ones(ratings), (records, prompts))
    made.rating_mass[:] = 0.5
    made.status[:] = OK
    return made


def with_gaps() -> Ratings:
    made = some_ratings()
    for at, status in (((1, 0), TOO_LONG), ((1, 1), TOO_LONG), ((3, 2), FAILED)):
        made.status[at] = status
        made.probabilities[at] = np.nan
        made.rating_mass[at] = np.nan
        made.reasons[at] = f"because {status}"
    made.reasons[0, 0] = "response cut from 9 to 5 characters"
    return made


def folder_of(path: Path, *parts: Ratings) -> Path:
    names = []
    for number, part in enumerate(parts):
        names.append(score_store.part_name(number))
        score_store.write_part(path / names[-1], part, "engine", ["p0", "p1", "p2"])
    write_manifest(path, kind="scores", fingerprint={}, files=names, counts={"prompts": 3})
    return path


def equal(a: Ratings, b: Ratings) -> None:
    assert (a.record_ids, a.keys, a.reasons) == (b.record_ids, b.keys, b.reasons)
    np.testing.assert_array_equal(a.probabilities, b.probabilities)
    np.testing.assert_array_equal(a.rating_mass, b.rating_mass)
    np.testing.assert_array_equal(a.status, b.status)


@pytest.mark.parametrize("make", [some_ratings, with_gaps])
def test_a_part_comes_back_as_it_was(tmp_path: Path, make) -> None:
    score_store.write_part(tmp_path / "part.parquet", make(), "engine", ["p0", "p1", "p2"])
    equal(score_store.read_part(tmp_path / "part.parquet"), make())
    index = score_store.read_index(tmp_path / "part.parquet")
    assert index is not None
    assert (index.engine, index.prompts, index.ratings) == ("engine", ["p0", "p1", "p2"], 5)


def test_others_read_the_columns_of_the_contract(tmp_path: Path) -> None:
    folder_of(tmp_path, some_ratings(), with_gaps())
    full = pq.read_table(tmp_path / score_store.part_name(0))
    assert full.schema.equals(score_store.score_schema(5))
    assert full.schema.field("probabilities").type == pa.list_(pa.float32(), 5)
    gaps = pq.read_table(tmp_path / score_store.part_name(1)).to_pylist()
    assert [row["prompt_index"] for row in gaps] == [0, 1, 2] * 4
    assert [row["record_id"] for row in gaps[:4]] == ["r0", "r0", "r0", "r1"]
    for row in gaps:
        assert (row["status"] == "ok") == (row["probabilities"] is not None)
        assert (row["status"] == "ok") == (row["rating_mass"] is not None)
        assert row["status"] == "ok" or row["reason"]
    both = pq.read_table([tmp_path / score_store.part_name(n) for n in (0, 1)])
    assert both.num_rows == 24

    import duckdb

    query = "select count(*), count(probabilities) from read_parquet(?)"
    assert duckdb.execute(query, [str(tmp_path / "*.parquet")]).fetchone() == (24, 21)


def test_a_record_has_the_worst_status_of_its_prompts(tmp_path: Path) -> None:
    folder_of(tmp_path, with_gaps(), some_ratings())
    whole = score_store.read_scores(tmp_path, 3)
    assert whole.record_status.tolist() == [OK, TOO_LONG, OK, FAILED, OK, OK, OK, OK]
    assert np.isnan(whole.probabilities[3, 2]).all()
    assert whole.reasons[3, 2] == "because 2"
    fewer = score_store.read_scores(tmp_path, 2)
    assert fewer.probabilities.shape == (8, 2, 5)
    assert fewer.record_status.tolist() == [OK, TOO_LONG, OK, OK, OK, OK, OK, OK]
    assert [len(part.record_ids) for part in score_store.iter_scores(tmp_path, 1)] == [4, 4]


def test_refuses_more_prompts_than_there_are_and_incomplete_folders(tmp_path: Path) -> None:
    folder_of(tmp_path, some_ratings())
    with pytest.raises(ArtefactError, match="4 rating prompts are asked for"):
        score_store.read_scores(tmp_path, 4)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="no complete artefact"):
        score_store.read_scores(tmp_path, 1)


def test_refuses_pending_rows_and_foreign_files(tmp_path: Path) -> None:
    pending = some_ratings()
    pending.status[0, 0] = score_store.PENDING
    with pytest.raises(ValueError, match="1 rows of"):
        score_store.write_part(tmp_path / "part.parquet", pending, "engine", ["p0", "p1", "p2"])
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and nothing else")
    for name in ("other.parquet", "cut.parquet"):
        assert score_store.read_index(tmp_path / name) is None
        with pytest.raises(ArtefactError, match="no score file"):
            score_store.read_part(tmp_path / name)


def test_a_part_that_lost_a_row_is_refused_by_name(tmp_path: Path) -> None:
    folder_of(tmp_path, some_ratings(), some_ratings())
    lost = tmp_path / score_store.part_name(1)
    pq.write_table(pq.read_table(lost).slice(1), lost)
    write_manifest(
        tmp_path,
        kind="scores",
        fingerprint={},
        files=[score_store.part_name(0), lost.name],
        counts={"prompts": 3},
    )
    with pytest.raises(ArtefactError, match=f"{lost.name} does not have 3 rows per") as refusal:
        score_store.read_scores(tmp_path, 3)
    assert "remove" in refusal.value.hint


def test_a_folder_whose_manifest_lists_no_part_holds_no_scores(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"lists no part-\*\.parquet") as refusal:
        score_store.read_scores(folder_of(tmp_path), 3)
    assert refusal.value.hint == f"remove {tmp_path} and score again"
