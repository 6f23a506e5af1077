"""What is done in streams equals what is done in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.duckdb_tables import RowStream, Workspace
from selectit_dagster.selection import external_sort
from selectit_dagster.selection.aligned_merge import OutOfStepError, in_step
from selectit_dagster.selection.ranking_statistics import ScoreSummary


def cut(table: pa.Table, sizes: list[int]):
    """Yield a table in batches of these sizes."""
    start = 0
    for size in sizes:
        yield from table.slice(start, size).combine_chunks().to_batches()
        start += size


@pytest.mark.parametrize("count", [1, 5, 400])
def test_rows_come_back_by_rank_and_leave_nothing_behind(tmp_path, monkeypatch, count):
    monkeypatch.setattr(external_sort, "_HELD_BYTES", 900)
    monkeypatch.setattr(external_sort, "_BUCKET_BYTES", 2000)
    monkeypatch.setattr(external_sort, "_ROWS", 7)
    ranks = np.random.default_rng(1).permutation(count).astype(np.int32) + 1
    texts = [f"text of {rank}" for rank in ranks]
    by_rank = external_sort.ByRank(tmp_path, count, 20.0)
    for batch in cut(pa.table({"text": texts, "rank": ranks}), [3] * count):
        by_rank.add(batch)
    found = pa.Table.from_batches(by_rank.batches())
    assert found.column("rank").to_pylist() == list(range(1, count + 1))
    assert found.column("text").to_pylist() == [f"text of {n}" for n in range(1, count + 1)]
    assert not list(tmp_path.iterdir())


def test_chosen_rows_are_those_of_a_join(tmp_path, monkeypatch):
    monkeypatch.setattr(external_sort, "_ROWS", 4)
    names = [f"r{number}" for number in range(30)]
    pq.write_table(pa.table({"record_id": names, "n": range(30)}), tmp_path / "records.parquet")
    picked = [29, 0, 7, 8, 9, 10, 28]
    table = {
        "record_id": [names[number] for number in picked],
        "rank": pa.array(range(1, 8), pa.int32()),
        "score": [number / 2 for number in picked],
    }
    pq.write_table(pa.table(table), tmp_path / "chosen.parquet")
    with Workspace(tmp_path) as work:
        paths = tmp_path / "records.parquet", tmp_path / "chosen.parquet"
        rows = [
            row
            for batch in external_sort.chosen_rows(*paths, ["n"], work)
            for row in batch.to_pylist()
        ]
    assert rows == [
        {"n": number, "score": number / 2, "rank": picked.index(number) + 1}
        for number in sorted(picked)
    ]


def test_a_stream_of_rows_is_taken_range_by_range():
    table = pa.table({"row": [1, 2, 5, 6, 9], "value": list("abcde")})
    stream = RowStream(cut(table, [3, 0, 2]))
    taken = [
        "".join(v for part in stream.until(stop) for v in part.column("value").to_pylist())
        for stop in (0, 2, 6, 6, 100, 101)
    ]
    assert taken == ["", "a", "bc", "", "de", ""]
    assert list(RowStream(iter(())).until(5)) == []


@pytest.mark.parametrize(
    "scores", [[1.0], [2.0] * 9, list(np.random.default_rng(4).normal(3, 1, 501).round(1))]
)
def test_the_summary_of_a_stream_is_that_of_the_whole(scores):
    ordered = np.sort(np.array(scores))[::-1]
    summary = ScoreSummary(ordered.size, float(ordered[-1]), float(ordered[0]))
    for part in np.array_split(ordered, 7):
        summary.add(part)
    found = summary.as_dict()
    counts, edges = np.histogram(ordered, bins=20)
    assert found["histogram"] == {"counts": counts.tolist(), "edges": edges.tolist()}
    assert found["distinct"] == np.unique(ordered).size
    for name, expected in {
        "min": ordered.min(),
        "max": ordered.max(),
        "mean": ordered.mean(),
        "std": ordered.std(),
        "p05": np.quantile(ordered, 0.05),
        "p50": np.quantile(ordered, 0.5),
        "p95": np.quantile(ordered, 0.95),
    }.items():
        assert found[name] == pytest.approx(expected, abs=1e-12), name
    assert ScoreSummary(0, 0.0, 0.0).as_dict() == {}


IDS = ["a", "b", "c", "d", "e"]


def scored(ids: list[str], sizes: list[int]):
    columns = {"record_id": ids, "score": range(len(ids)), "status": ids, "reason": ids}
    return cut(pa.table(columns), sizes)


def records(sizes: list[int]):
    return cut(pa.table({"record_id": IDS, "position": range(5)}), sizes)


def test_models_in_the_records_order_are_put_beside_them_however_they_are_cut():
    models = [scored(IDS, [1, 4]), scored(IDS, [5])]
    table = pa.Table.from_batches(in_step(records([2, 2, 1]), models))
    assert table.column_names[:5] == ["record_id", "position", "s0", "c0", "r0"]
    assert table.column("s1").to_pylist() == table.column("position").to_pylist()


@pytest.mark.parametrize("ids", [["a", "b", "c", "d"], [*IDS, "f"], ["a", "c", "b", "d", "e"]])
def test_other_records_or_another_order_are_noticed(ids):
    with pytest.raises(OutOfStepError):
        list(in_step(records([2, 3]), [scored(IDS, [5]), scored(ids, [len(ids)])]))
