"""From a file through reading, curation and selection to the file that comes out."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from selectit_dagster.data.curation import CurationRequest, curate
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.experiment import CurationSection, DatasetSection
from selectit_dagster.selection.subset import SelectionRequest, select

LINES = [
    b'{"instruction": "Say \\u00e9",   "input": "", "output": "\xc3\xa9 it is."}',
    b'{"output": "=1+1 is two.", "instruction": "Add", "input": "1, 1", "extra": [1, null]}',
    '{"instruction": "说", "input": "", "output": "好的。\\n第二行。"}'.encode(),
]


def through(path: Path, tmp_path: Path, **options: object) -> Path:
    """Read, curate and select everything; return the file in the source's format."""
    section = DatasetSection.model_validate({"path": str(path), **options})
    ingest(IngestRequest(section), tmp_path / "raw")
    curate(CurationRequest(tmp_path / "raw", CurationSection(), None), tmp_path / "curated")
    request = SelectionRequest(
        "full", "full", None, tmp_path / "curated", None, (), "share", 1.0, None, {}
    )
    manifest = select(request, tmp_path / "selected")
    return tmp_path / "selected" / manifest.details["data_file"]


def test_a_json_array_keeps_the_bytes_of_every_record(tmp_path):
    (tmp_path / "in.json").write_bytes(b"[ " + b" ,\n\n".join(LINES) + b"]")
    out = through(tmp_path / "in.json", tmp_path)
    assert out.name == "data.json"
    found = out.read_bytes()
    assert all(line in found for line in LINES)
    assert len(found) == len(b"[\n\n]\n") + sum(map(len, LINES)) + 2 * len(b",\n")
    assert len(json.loads(found)) == 3


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_json_lines_keep_the_bytes_of_every_record_and_the_packing(tmp_path, packing):
    plain = b"\n".join(LINES) + b"\n"
    pack = {
        "": lambda data: data,
        ".gz": gzip.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }[packing]
    (tmp_path / f"in.jsonl{packing}").write_bytes(pack(plain))
    out = through(tmp_path / f"in.jsonl{packing}", tmp_path)
    assert out.name == f"data.jsonl{packing}"
    unpack = {
        "": lambda data: data,
        ".gz": gzip.decompress,
        ".zst": lambda d: zstandard.ZstdDecompressor().stream_reader(io.BytesIO(d)).read(),
    }[packing]
    assert sorted(unpack(out.read_bytes()).splitlines()) == sorted(LINES)


def test_csv_keeps_the_bytes_of_every_row(tmp_path):
    rows = [b'"a ""quoted"" one","","two\r\nlines."', b"plain,,=SUM(A1)."]
    data = b"instruction,input,output\r\n" + b"\r\n".join(rows) + b"\r\n"
    (tmp_path / "in.csv").write_bytes(data)
    out = through(tmp_path / "in.csv", tmp_path)
    found = out.read_bytes()
    assert found.startswith(b"instruction,input,output\r\n") and len(found) == len(data)
    assert all(row in found for row in rows)
    text = io.StringIO(found.decode(), newline="")
    assert {row["output"] for row in csv.DictReader(text)} == {"two\r\nlines.", "=SUM(A1)."}


def typed() -> pa.Table:
    return pa.table(
        {
            "instruction": ["one", "two", "three"],
            "output": ["It is b.", "It is a.", "It is c."],
            "weight": pa.array([1.5, None, 2.0], pa.float32()),
        }
    )


def test_parquet_keeps_its_types_and_values(tmp_path):
    pq.write_table(typed(), tmp_path / "in.parquet")
    out = pq.read_table(through(tmp_path / "in.parquet", tmp_path))
    assert out.schema == typed().schema
    assert out.sort_by("output") == typed().sort_by("output")


def test_a_saved_dataset_comes_out_as_parquet_that_datasets_reads(tmp_path):
    import datasets

    datasets.Dataset(typed()).save_to_disk(str(tmp_path / "saved"))
    out = through(tmp_path / "saved", tmp_path)
    assert out.name == "data.parquet"
    loaded = datasets.Dataset.from_parquet(str(out), cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["output"]) == sorted(typed().column("output").to_pylist())
