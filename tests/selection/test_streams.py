"""What is done in streams equals what is done in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.duckdb_tables import RowStream, Workspace
from selectit_dagster.selection import external_sort


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
        records, picked_file = tmp_path / "records.parquet", tmp_path / "chosen.parquet"
        rows = [
            row
            for batch in external_sort.chosen_rows(records, work.table(picked_file), ["n"], work)
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
