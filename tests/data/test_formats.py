"""Every format and layout of the contract, detected by content or forced by option."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from selectit_dagster.artefacts.duckdb_tables import stored_batches
from selectit_dagster.data.arrow_reader import open_typed, rows_at
from selectit_dagster.data.curation import CurationRequest, curate
from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.experiment import CurationSection, DatasetSection

OPTIONS = {"layout": "columns", "columns": {"instruction": "ask", "response": "reply"}}


def texts(records):
    return [(r["instruction"], r["input"], r["response"]) for r in records]


EXPECTED = [(f"Say the number {i}.", "", f"It is {i}.") for i in range(3)]


@pytest.mark.parametrize("name", ["a.json", "a.data"])
def test_a_json_array_is_recognised_by_its_content(workshop, make, name):
    path = workshop.write(name, "\ufeff \n" + json.dumps(make(3), indent=2))
    manifest = workshop.read(path)
    assert manifest.details["format"] == "json"
    assert manifest.details["layout"] == "alpaca"
    assert texts(workshop.records) == EXPECTED


def test_raw_is_the_bytes_of_the_element(workshop):
    elements = [
        b'{ "instruction":"a\\u00e9\\"[{,", "output" : "b" }',
        b'{"output":"d","instruction":"c"}',
    ]
    path = workshop.write("a.json", b"[\n  " + b" ,\n\t".join(elements) + b"\n]\n")
    workshop.read(path)
    assert [r["raw"] for r in workshop.records] == elements


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_json_lines_keep_their_lines(workshop, make, ending):
    lines = [json.dumps(r) for r in make(3)]
    path = workshop.write("a", ending.join(lines) + ending + ending)
    manifest = workshop.read(path)
    assert manifest.details["format"] == "jsonl"
    assert manifest.counts == {"read": 3, "kept": 3, "rejected": 0}
    assert [r["raw"].rstrip(b"\r").decode() for r in workshop.records] == lines


def test_compressed_json_lines_are_unpacked(workshop, make):
    text = "".join(json.dumps(r) + "\n" for r in make(3)).encode()
    half = len(text) // 2
    two_members = gzip.compress(text[:half]) + gzip.compress(text[half:])
    for name, packed in [
        ("a.jsonl.gz", two_members),
        ("a.jsonl.zst", zstandard.compress(text)),
        ("b.zst", zstandard.compress(text[:half]) + zstandard.compress(text[half:])),
    ]:
        workshop.read(workshop.write(name, packed))
        assert texts(workshop.records) == EXPECTED


def test_a_csv_row_over_several_lines_keeps_its_text(workshop):
    rows = ['"Say ""hi"",\nplease",,"line 1\nline 2"', "plain,in,out"]
    path = workshop.write("a.csv", "instruction,input,output\n" + "\n".join(rows) + "\n")
    manifest = workshop.read(path)
    assert manifest.details["format"] == "csv"
    assert manifest.details["source"]["csv"]["header"] == "instruction,input,output"
    assert [r["raw"].decode() for r in workshop.records] == rows
    assert texts(workshop.records)[0] == ('Say "hi",\nplease', "", "line 1\nline 2")


def test_csv_with_semicolons_and_windows_line_ends(workshop):
    path = workshop.write("a.csv", "prompt;completion\r\nq, with comma;a\r\n")
    manifest = workshop.read(path)
    assert manifest.details["source"]["csv"]["delimiter"] == ";"
    assert manifest.details["source"]["csv"]["line_ending"] == "\r\n"
    assert texts(workshop.records) == [("q, with comma", "", "a")]


def taken_rows(section, kind, positions):
    """Return the typed rows at some positions of the source."""
    reader = open_typed(section, kind, None)
    batches = rows_at(reader, np.array(positions), section.path)
    return pa.Table.from_batches(batches, schema=reader.schema)


def test_parquet_rows_can_be_taken_back_with_their_types(workshop):
    table = pa.table(
        {
            "ask": ["a", "b", "c"],
            "reply": ["x", "y", "z"],
            "n": pa.array([1, None, 3], pa.int16()),
            "blob": [b"\x00", b"\xff", b""],
        }
    )
    path = workshop.folder / "a.parquet"
    pq.write_table(table, path)
    manifest = workshop.read(path, **OPTIONS)
    assert manifest.details["format"] == "parquet"
    assert json.loads(workshop.records[1]["raw"])["n"] is None
    section = DatasetSection(path=str(path), **OPTIONS)
    taken = taken_rows(section, "parquet", [0, 2])
    assert taken.schema == table.schema
    assert taken.to_pylist() == [table.to_pylist()[i] for i in (0, 2)]
    with pytest.raises(UserError, match="no longer has the rows"):
        taken_rows(section, "parquet", [0, 3])


def test_a_saved_dataset_is_read_and_its_split_chosen(workshop, make):
    import datasets

    whole = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(make(3)), "test": datasets.Dataset.from_list(make(1))}
    )
    whole.save_to_disk(str(workshop.folder / "saved"))
    manifest = workshop.read(workshop.folder / "saved", split="test")
    assert (manifest.details["format"], manifest.counts["kept"]) == ("datasets", 1)
    workshop.read(workshop.folder / "saved")
    assert texts(workshop.records) == EXPECTED
    with pytest.raises(UserError, match="no split 'dev'; it has: train, test"):
        workshop.read(workshop.folder / "saved", split="dev")


def test_a_hub_name_without_the_hub_says_so(workshop, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no local file or folder"):
        workshop.read("someone/some-data")


def test_what_is_neither_a_file_nor_a_hub_name_is_refused(workshop):
    with pytest.raises(
        UserError, match="'my data' is neither a file or folder here nor a hub name"
    ) as caught:
        workshop.read("my data")
    assert "\n" not in caught.value.message
    assert "dataset.path" in caught.value.hint


def test_a_hub_revision_is_resolved_to_a_commit_and_recorded(workshop, make, monkeypatch):
    import datasets
    import huggingface_hub

    folder = workshop.folder / "repo"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(make(3)), folder / "train.parquet")
    asked = []

    class Info:
        sha = "c0ffee" * 6

    def info(self, name, revision=None, timeout=None):
        asked.append((name, revision))
        return Info()

    real = datasets.load_dataset

    def load(name, *, revision, **options):
        asked.append((name, revision))
        return real(str(folder), **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    manifest = workshop.read("someone/some-data", revision="main")
    assert ("someone/some-data", "main") in asked
    assert ("someone/some-data", Info.sha) in asked
    assert manifest.details["source"]["revision"] == Info.sha
    assert manifest.fingerprint["source"] == {"hub": "someone/some-data", "revision": Info.sha}
    assert texts(workshop.records) == EXPECTED


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("RepositoryNotFoundError", UserError, "has no dataset"),
        ("RevisionNotFoundError", UserError, "at revision 'dev'"),
        ("HfHubHTTPError", PassingError, "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told_from_what_may_pass(
    workshop, monkeypatch, name, error, message
):
    import huggingface_hub
    from huggingface_hub import errors

    def info(self, name_, **asked):
        kind = getattr(errors, name)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    with pytest.raises(error, match=message):
        workshop.read("someone/some-data", revision="dev")


def test_the_format_can_be_forced(workshop, make):
    path = workshop.write("a.txt", "instruction\tweight\noutput\t1\n")
    with pytest.raises(UserError, match="layout is not one that is recognised"):
        workshop.read(path, format="csv")
    path = workshop.write("b.csv", json.dumps(make(1)[0]) + "\n")
    assert workshop.read(path, format="jsonl").counts["kept"] == 1


def test_only_the_first_records_are_read_under_a_limit(workshop, make):
    manifest = workshop.read(workshop.write("a.json", make(9)), limit=4)
    assert manifest.counts == {"read": 4, "kept": 4, "rejected": 0}


def test_the_stored_artefact_is_returned_until_something_changes(workshop, make):
    path = workshop.write("a.json", make(3))
    first = workshop.read(path)
    assert workshop.read(path) == first
    assert workshop.read(path, limit=2).counts["read"] == 2
    workshop.write("a.json", make(4))
    assert workshop.read(path).counts["read"] == 4


def test_a_return_inside_quotes_is_part_of_a_column_name(workshop):
    path = workshop.write("a.csv", b'instruction,"a\rb",output\nSay 1.,x,It is 1.\n')
    assert workshop.read(path).counts["kept"] == 1


def test_a_csv_header_ends_at_a_line_feed_and_nowhere_else(workshop):
    header = "no\u2028te,mark\x0bed,instruction,output"
    path = workshop.write("a.csv", f"{header}\na,b,Say 1.,It is 1.\n")
    manifest = workshop.read(path)
    assert manifest.counts == {"read": 1, "kept": 1, "rejected": 0}


def test_records_that_are_long_need_no_memory_for_all_of_them(workshop, tmp_path, monkeypatch):
    """Texts of 20 MB in all, where the queries may hold 8."""
    monkeypatch.setattr("selectit_dagster.artefacts.duckdb_tables.MEMORY_PER_THREAD", 4_000_000)
    monkeypatch.setattr("selectit_dagster.data.ingest_pass.BATCH_BYTES", 4_000_000)
    path = tmp_path / "long.jsonl"
    with path.open("w") as handle:
        for number in range(20):
            answer = f"{number} " + "x" * 1_000_000
            handle.write(json.dumps({"instruction": f"Count {number}.", "output": answer}) + "\n")
    manifest = workshop.read(path)
    assert manifest.counts["kept"] == manifest.details["profile"]["sample"] == 20
    sizes = [batch.num_rows for batch in stored_batches(workshop.out / "records.parquet", ["raw"])]
    assert sum(sizes) == 20
    assert max(sizes) < 5
    assert curate(CurationRequest(workshop.out, CurationSection()), tmp_path / "c").counts["kept"]
