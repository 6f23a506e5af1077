"""Folders, patterns and several inputs are read as their files are, one after the other."""

from __future__ import annotations

import datetime as dt
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import DatasetSection, parse_experiment


def texts(records):
    return [(r["instruction"], r["input"], r["response"]) for r in records]


def folder_with(workshop, **files):
    folder = workshop.folder / "data"
    folder.mkdir()
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / name.replace("__", ".")).write_text(lines, encoding="utf-8")
    return folder


def test_a_number_among_the_answers_alters_no_other_answer(workshop, make):
    records = [*make(7), {"instruction": "2+2?", "input": "", "output": 4}]
    manifest = workshop.read(folder_with(workshop, a__jsonl=records))
    assert manifest.counts == {"read": 8, "kept": 7, "rejected": 1}
    assert texts(workshop.records) == [(r["instruction"], "", r["output"]) for r in records[:7]]
    assert workshop.rejected[0]["field"] == "output"


def test_every_file_is_read_whatever_its_name_says_of_splits(workshop, make):
    records = make(6)
    folder = folder_with(
        workshop,
        train_part1__jsonl=records[:2],
        code_test_cases__jsonl=records[2:4],
        web_dev__jsonl=records[4:],
    )
    manifest = workshop.read(folder)
    assert manifest.counts["kept"] == 6
    files = manifest.details["source"]["files"]
    assert [(f["file"], f["read"], f["rejected"]) for f in files] == [
        ("code_test_cases.jsonl", 2, 0),
        ("train_part1.jsonl", 2, 0),
        ("web_dev.jsonl", 2, 0),
    ]


def test_messages_whose_keys_differ_are_all_read(workshop):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 1}]
    folder = folder_with(
        workshop, a__jsonl=[{"conversations": turns}], b__jsonl=[{"conversations": turns[:1] * 1}]
    )
    manifest = workshop.read(folder)
    assert manifest.counts == {"read": 2, "kept": 1, "rejected": 1}
    assert workshop.rejected[0]["file"] == "b.jsonl"


def test_a_column_may_be_null_absent_or_of_another_type_in_one_file(workshop, make):
    folder = workshop.folder / "shards"
    folder.mkdir()
    one, two = make(4)[:2], make(4)[2:]
    pq.write_table(pa.Table.from_pylist([{**r, "n": 1} for r in one]), folder / "a.parquet")
    other = [{"instruction": r["instruction"], "output": r["output"], "n": "x"} for r in two]
    pq.write_table(pa.Table.from_pylist(other), folder / "b.parquet")
    assert workshop.read(folder).counts["kept"] == 4
    assert [json.loads(r["raw"])["n"] for r in workshop.records] == [1, 1, "x", "x"]


def test_dates_and_words_of_a_csv_stay_what_they_are(workshop):
    folder = workshop.folder / "data"
    folder.mkdir()
    (folder / "a.csv").write_text("instruction,output\n2020-01-02,NA\nTrue,None\n")
    (folder / "b.csv").write_text("instruction,output\nx,true\n")
    workshop.read(folder)
    expected = [("2020-01-02", "", "NA"), ("True", "", "None"), ("x", "", "true")]
    assert texts(workshop.records) == expected


def test_what_is_no_data_is_passed_over_by_name(workshop, make):
    folder = folder_with(workshop, a__jsonl=make(2))
    for name in (".hidden.jsonl", "a.jsonl.bak", "a.jsonl~", "README.md", "dataset_info.json"):
        (folder / name).write_text('{"instruction": "no", "output": "no"}\n')
    manifest = workshop.read(folder)
    assert manifest.counts["read"] == 2
    (note,) = manifest.details["notes"]
    for name in (".hidden.jsonl (hidden)", "a.jsonl.bak (a backup)", "README.md (no data)"):
        assert name in note


def test_a_folder_without_data_says_what_lies_there(workshop):
    folder = workshop.folder / "empty"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no data files: notes\.txt \(no data\)"):
        workshop.read(folder)


def test_shards_of_several_splits_are_not_mixed(workshop, make):
    folder = workshop.folder / "repo" / "data"
    folder.mkdir(parents=True)
    for index, name in enumerate(("train-00000-of-00001", "test-00000-of-00001")):
        pq.write_table(pa.Table.from_pylist(make(3)[index : index + 1]), folder / f"{name}.parquet")
    with pytest.raises(UserError, match="shards of several splits: test, train"):
        workshop.read(folder.parent)
    assert workshop.read(folder.parent, split="test").counts["kept"] == 1
    assert workshop.records[0]["instruction"] == "Say the number 1."


def test_brackets_in_a_folders_name_are_part_of_it(workshop, make):
    folder = workshop.folder / "data[1]*"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(make(2)))
    assert workshop.read(folder).counts["kept"] == 2
    assert workshop.read(folder / "a.json").counts["kept"] == 2


def test_a_pattern_and_a_list_name_files_in_order(workshop, make):
    records = make(6)
    for index in range(3):
        workshop.lines(f"sh{index}.jsonl", records[index * 2 : index * 2 + 2])
    workshop.read(workshop.folder / "sh*.jsonl")
    assert [r["instruction"] for r in workshop.records] == [r["instruction"] for r in records]
    paths = [str(workshop.folder / f"sh{index}.jsonl") for index in (2, 0)]
    ingest(IngestRequest(DatasetSection(path=paths)), workshop.out)
    assert [r["instruction"] for r in workshop.records] == [
        r["instruction"] for r in [*records[4:], *records[:2]]
    ]
    with pytest.raises(UserError, match="no file matches"):
        workshop.read(workshop.folder / "none*.jsonl")
    with pytest.raises(UserError, match="named twice"):
        ingest(IngestRequest(DatasetSection(path=paths[:1] * 2)), workshop.out)


def test_relative_paths_of_a_list_are_relative_to_the_experiment_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    value = {
        "name": "x",
        "dataset": {"path": ["a.jsonl", "b/*.jsonl"]},
        "scoring_models": [{"name": "m", "path": "owner/m"}],
    }
    dataset = parse_experiment(value, source="x", folder=tmp_path).dataset
    assert dataset.path == str(tmp_path / "a.jsonl")
    assert dataset.more == (str(tmp_path / "b/*.jsonl"),)


record = st.fixed_dictionaries(
    {
        "instruction": st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
        "output": st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
    },
    optional={"system": st.text(st.characters(codec="ascii", categories=["L"]), max_size=5)},
)


@settings(max_examples=15, deadline=None)
@given(records=st.lists(record, min_size=2, max_size=8), cut=st.integers(1, 7))
def test_the_same_records_give_the_same_dataset_however_they_lie_there(
    tmp_path_factory, records, cut
):
    root = tmp_path_factory.mktemp("forms")
    cut = min(cut, len(records) - 1)
    lines = [json.dumps(r, ensure_ascii=False).encode() for r in records]
    whole = root / "whole.jsonl"
    whole.write_bytes(b"\n".join(lines) + b"\n")
    packed = root / "whole.jsonl.gz"
    packed.write_bytes(gzip.compress(whole.read_bytes()))
    (root / "array.json").write_bytes(b"[" + b",\n".join(lines) + b"]")
    (root / "wrapped.json").write_bytes(b'{"n": 1, "data": [' + b",\n".join(lines) + b"]}")
    (root / "stream.json").write_text("\n".join(json.dumps(r, indent=1) for r in records))
    columns = list(dict.fromkeys(name for r in records for name in r))
    rows = {name: [r.get(name) for r in records] for name in columns}
    pq.write_table(pa.table(rows), root / "table.parquet")
    folder = root / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"\n".join(lines[:cut]) + b"\n")
    (folder / "b.json").write_bytes(b"[" + b",".join(lines[cut:]) + b"]")
    seen = []
    for source in (whole, packed, root / "array.json", root / "table.parquet", folder):
        seen.append(_read(source, root))
    for name in ("wrapped.json", "stream.json"):
        seen.append(_read(root / name, root))
    # records of equal content swap their numbers where their bytes are written differently
    assert all(ids == seen[0][0] and rows == seen[0][1] for ids, rows in seen)


def _read(source, root):
    out = root / "out"
    ingest(IngestRequest(DatasetSection(path=str(source), max_reject_share=1.0)), out)
    table = pq.read_table(out / "records.parquet")
    columns = ["position", "instruction", "input", "response", "turns", "content_hash"]
    return sorted(table.column("record_id").to_pylist()), table.select(columns).to_pylist()


def test_a_wrapper_on_one_line_is_its_records_and_a_line_of_json_lines_is_one(workshop, make):
    wrapper = {"version": 1, "data": make(3)}
    assert workshop.read(workshop.write("a.json", json.dumps(wrapper))).counts["kept"] == 3
    one = json.dumps(make(1)[0])
    for name in ("b.json", "b.jsonl"):
        workshop.read(workshop.write(name, one))
        assert [r["raw"].decode() for r in workshop.records] == [one]
    splits = workshop.write("c.json", json.dumps({"a": make(1), "b": make(2)}))
    with pytest.raises(UserError, match="several lists of records: a, b"):
        workshop.read(splits)
    assert workshop.read(splits, split="b").counts["kept"] == 2


def test_a_sensible_message_for_a_pointer_of_git_lfs(workshop):
    path = workshop.write("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(UserError, match="Git LFS pointer") as caught:
        workshop.read(path)
    assert "git lfs pull" in caught.value.hint


def test_views_run_lengths_and_json_columns_are_read_and_can_be_taken_back(workshop):
    rows = [{"k": "v"}, {"other": [1]}]
    table = pa.table(
        {
            "instruction": pa.array(["a", "b"], pa.string_view()),
            "output": pa.array(["x", "y"], pa.string_view()),
            "blob": pa.array([b"1", b"2"], pa.binary_view()),
            "tags": pa.array([["t"], []], pa.list_(pa.string_view())),
            "when": pa.array([dt.date(2020, 1, 2)] * 2),
            "calls": pa.array([json.dumps(r) for r in rows], pa.json_()),
        }
    )
    path = workshop.folder / "a.parquet"
    pq.write_table(table, path)
    assert workshop.read(path).counts["kept"] == 2
    assert json.loads(workshop.records[1]["raw"])["calls"] == {"other": [1]}
