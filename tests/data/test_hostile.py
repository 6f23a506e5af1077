"""Files that nobody would write on purpose: a clear message or a named reject, always."""

from __future__ import annotations

import errno
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from selectit_dagster.data import csv_reader, ingest_pass, readers
from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.csv_reader import CsvReader
from selectit_dagster.data.file_formats import head_of
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.data.input_files import find_source
from selectit_dagster.data.json_array import read_array
from selectit_dagster.data.json_records import read_lines
from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.experiment import DatasetSection

GOOD = b'{"instruction": "i", "output": "o"}'

BAD_RECORDS = [
    (b'{"instruction": "i", "output": NaN}', "output", "is NaN, which JSON does not have"),
    (b'{"instruction": -Infinity, "output": "o"}', "instruction", "is -Infinity"),
    (b'{"instruction": "i", "output": "\\ud800"}', "output", "holds a lone surrogate"),
    (b'{"instruction": "i", "output": "\xff"}', "(record)", "is not valid UTF-8"),
    (b'{"instruction": "i\\u0000", "output": "o"}', "instruction", "holds a NUL character"),
    (b'{"instruction": {"a": [null]}, "output": "o"}', "instruction", "is an object"),
    (b'{"instruction": "i", "output": 1.5}', "output", "is a number, expected text"),
    (b'{"instruction": "i", "output": "a\tb"}', "(record)", "holds a control character"),
    (b"null", "(record)", "is null, expected an object"),
    (b'"text"', "(record)", "is a str, expected an object"),
    (b"[1, [2]]", "(record)", "is a list, expected an object"),
    (b'{"instruction": "i", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "(record)", "is nested too"),
    (b'{"instruction": "i", "output": "o", "x": [1e999]}', "x[0]", "is a number beyond"),
    (b'{"output": "o", "x": 1' + b"0" * 5000 + b"}", "(record)", "holds a number that is too"),
    (b'{"instruction": "i", "output": "o", "x": {"y": [null, NaN]}}', "x.y[1]", "is NaN"),
]


@pytest.mark.parametrize(("record", "field", "reason"), BAD_RECORDS)
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_bad_record_is_named_and_the_others_are_read(workshop, kind, record, field, reason):
    records = [GOOD, record, GOOD]
    content = b"\n".join(records) if kind == "jsonl" else b"[" + b",\n".join(records) + b"]"
    manifest = workshop.read(workshop.write("a", content))
    assert manifest.counts == {"read": 3, "kept": 2, "rejected": 1}
    reject = workshop.rejected[0]
    assert (reject["position"], reject["line"], reject["field"]) == (1, 2, field)
    assert reject["reason"].startswith(reason)
    assert [r["position"] for r in workshop.records] == [0, 2]


def test_a_line_that_is_no_json_is_one_reject(workshop):
    path = workshop.write("a.jsonl", GOOD + b'\n{"instruction": "half\n' + GOOD + b"\n{")
    manifest = workshop.read(path)
    assert manifest.counts == {"read": 4, "kept": 2, "rejected": 2}
    assert "is not JSON: Unterminated string" in workshop.rejected[0]["reason"]


@pytest.mark.parametrize(
    ("content", "line", "column", "what"),
    [
        (b'[\n{"a": "b"},\n{"a": "b" "c"}\n]', 3, 11, "Expecting ',' delimiter"),
        (b'[{"a": 1},\n  {"a": \n', 3, 1, "the file ends before the array does"),
        (b'[{"a": 1}', 1, 10, "the file ends before the array does"),
        (b'[{"a": 1},]', 1, 11, "a comma before the closing bracket"),
        (b'[{"a": 1},,{"a": 1}]', 1, 11, "a comma without a value"),
        (b'[{"a": 1}]\n]', 2, 1, "text after the end of the array"),
        (b'[{"a": 1}}', 1, 10, "closed by"),
        (b'[{"a": 1},\n{"a": [1, 2},\n{"a": 3}]', 2, 12, "Expecting ',' delimiter"),
        (b'[{"a": "x},\n{"a": "y"}]', 1, 12, "Invalid control character"),
    ],
)
def test_a_broken_array_names_line_and_column(workshop, content, line, column, what):
    with pytest.raises(UserError, match=what) as caught:
        workshop.read(workshop.write("a.json", content), layout="alpaca")
    assert f"a.json, line {line}, column {column}:" in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b" \n ", "only blanks"),
        ("a.json", b"[ ]", "holds no records"),
        ("a.json", b'{\n "data": [\n  1,\n ]\n}', "line 4, column 2: not valid JSON"),
        ("a.csv", b"instruction,output\n", "holds no records"),
        ("a.csv", b'instruction,output\na,"b\nc,d\n', "row that starts on line 2 is never closed"),
        ("a.csv", b"instruction,instruction\na,b\n", "names a column twice"),
        ("a.parquet", b"PAR1garbage", "cannot be read as Parquet"),
        ("a.xlsx", b"PK\x03\x04....", "zip archive"),
        ("a.csv", b'"instruction,output\na,b\n', "row that starts on line 1 is never closed"),
        ("a.csv", b"instruction,output\ra,b\r", "bare carriage returns"),
        ("a.csv", b'"instruction",output\r"a","b"\r', "bare carriage returns"),
        ("a.csv", b'"inst\nruction",output\na,b\n', r"columns found: inst\\nruction, output"),
        ("a.csv", b"instruction, output\na,b\n", 'columns found: " output", instruction'),
        ("a.json", "[]".encode("utf-16"), "UTF-16"),
        ("a.json", '[{"a": "b"}]'.encode("utf-16-le"), "UTF-16"),
        ("a.csv", "instruction,output\né,b".encode("utf-16-be"), "UTF-16"),
        ("a.json", '[{"a": "b"}]'.encode("utf-32"), "UTF-32"),
        ("a.gz", gzip.compress('[{"a": "b"}]'.encode("utf-32-le")), "UTF-32"),
        ("a.html", b"\n <!DOCTYPE html><p>404, not found", "HTML or XML"),
        ("a.bin", b"\x00\x01\x02", "binary data"),
        ("a.txt", b"hello", "neither JSON"),
        ("a.gz", gzip.compress(b""), "holds no records"),
        ("a.gz", gzip.compress(b"")[:12], "end in the middle at byte 12"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(workshop, name, content, message):
    with pytest.raises(UserError, match=message):
        workshop.read(workshop.write(name, content))


def test_a_missing_file_and_a_folder_of_nothing_say_so(workshop):
    with pytest.raises(UserError, match="does not exist"):
        workshop.read(workshop.folder / "gone.json")
    (workshop.folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data files: no files"):
        workshop.read(workshop.folder / "empty")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone-data", "the dataset .*gone-data does not exist"),
        ("a.json", r"a\.json is a file, not the folder of a saved dataset"),
        ("folder", "folder is no saved dataset: it has neither state.json nor dataset_dict.json"),
    ],
)
def test_a_format_that_does_not_fit_the_place_is_refused(
    workshop, make, monkeypatch, name, message
):
    workshop.write("a.json", make(1))
    (workshop.folder / "folder").mkdir()
    monkeypatch.chdir(workshop.folder)
    with pytest.raises(UserError, match=message) as caught:
        workshop.read(name, format="datasets")
    assert caught.value.hint


def test_a_device_is_no_dataset(workshop):
    with pytest.raises(UserError, match="/dev/null is not a regular file or folder") as caught:
        workshop.read("/dev/null")
    assert "to a file first" in caught.value.hint


def test_a_file_that_may_not_be_read_is_named(workshop, make, monkeypatch):
    path = workshop.write("a.json", make(1))

    def refuse(self, *arguments, **more):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot read .*a\.json: Permission denied") as caught:
        head_of(path)
    assert "that you may read it" in caught.value.hint


def test_a_file_that_goes_away_before_it_is_read_is_named(workshop, make):
    path = workshop.write("a.json", make(1))
    source = ByteSource(path, "none")
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.json: No such file") as caught:
        list(source.blocks())
    assert "that the file is there" in caught.value.hint


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_half_written_archive_says_where_it_ends(workshop, make, pack):
    packed = pack("".join(json.dumps(r) + "\n" for r in make(5000)).encode())
    path = workshop.write("a.jsonl", packed[: len(packed) // 2])
    with pytest.raises(UserError, match="end in the middle at byte") as caught:
        workshop.read(path)
    assert f"{len(packed) // 2:,}" in caught.value.message
    assert "whole records were read before that" in caught.value.message
    assert not (workshop.out / "manifest.json").exists()


def test_what_was_read_before_the_damage_is_counted(workshop, make):
    whole = gzip.compress("".join(json.dumps(r) + "\n" for r in make(3)).encode())
    with pytest.raises(UserError, match="3 whole records were read before that"):
        workshop.read(workshop.write("a.gz", whole + b"garbage"))
    assert workshop.read(workshop.write("b.gz", whole + bytes(64))).counts["kept"] == 3


def test_a_nul_in_a_csv_row_is_one_reject(workshop):
    path = workshop.write("a.csv", b"instruction,output\na\x00,b\nc,d\n")
    assert workshop.read(path).counts == {"read": 2, "kept": 1, "rejected": 1}
    assert workshop.rejected[0]["reason"] == "holds a NUL character"


def test_a_damaged_archive_is_no_traceback(workshop, make):
    packed = bytearray(gzip.compress("".join(json.dumps(r) for r in make(500)).encode()))
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(UserError, match=r"damaged|end in the middle"):
        workshop.read(workshop.write("a.gz", bytes(packed)))


def test_a_zstd_stream_may_have_frames_without_data(workshop, make):
    frame = b"\x5a\x2a\x4d\x18\x04\x00\x00\x00abcd"
    data = zstandard.compress(json.dumps(make(3)).encode())
    path = workshop.write("a.zst", frame + data + frame)
    assert workshop.read(path).counts["kept"] == 3


def test_a_zstd_window_that_takes_too_much_memory_is_not_called_damage(workshop, make):
    wide = zstandard.ZstdCompressionParameters(window_log=29)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    data = packer.compress(json.dumps(make(3)).encode()) + packer.flush()
    with pytest.raises(UserError, match="window of more than 128 MiB") as caught:
        workshop.read(workshop.write("a.zst", data))
    assert "without --long" in caught.value.hint


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_any_number_of_blanks_may_come_first(workshop, make, pack):
    path = workshop.write("a", pack(b" \n" * 100_000 + json.dumps(make(3)).encode()))
    assert workshop.read(path).counts["kept"] == 3


def test_a_header_above_the_limit_is_refused(workshop):
    path = workshop.write("a.csv", b"instruction,output," + b"x" * 3000 + b"\na,b,c\n")
    with pytest.raises(UserError, match="header is longer than 1,000 bytes"):
        list(CsvReader(ByteSource(path, "none"), max_bytes=1000))


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_record_above_the_limit_is_skipped_in_a_stream(workshop, kind):
    big = b'{"instruction": "i", "output": "' + b"x" * 3000 + b'"}'
    parts = [GOOD, big, GOOD]
    content = b"[" + b",".join(parts) + b"]" if kind == "json" else b"\n".join(parts)
    path = workshop.write("a", content)
    read = read_array if kind == "json" else read_lines
    rows = list(read(ByteSource(path, "none"), max_bytes=1000))
    assert [isinstance(row.value, dict) for row in rows] == [True, False, True]
    assert rows[1].value.reason == "is larger than 1000 bytes"


# a block of 241 bytes ends between the two blanks before the first record
@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 241, 1 << 20])
def test_blank_lines_are_counted_wherever_the_blocks_end(workshop, monkeypatch, block):
    monkeypatch.setattr("selectit_dagster.data.byte_sources.BLOCK", block)
    blanks = b"\n" * 90 + b" \r\n\t\n" * 30
    path = workshop.write("a", blanks + b"  " + GOOD + b"\n" + blanks + b"oops\n" + blanks + GOOD)
    found = read_lines(ByteSource(path, "none"), max_bytes=1000)
    rows = [(row.line, row.raw, isinstance(row.value, dict)) for row in found]
    assert rows == [(151, b"  " + GOOD, True), (302, b"oops", False), (453, GOOD, True)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 241, 1 << 20])
def test_blank_lines_of_a_csv_are_counted_wherever_the_blocks_end(
    workshop, monkeypatch, block, end
):
    monkeypatch.setattr("selectit_dagster.data.byte_sources.BLOCK", block)
    blanks, field = end * 90, f"a{end * 40}b"
    rows = (f"instruction,output{end}", f'i,"{field}"{end}', f"one{end}", "i,o")
    path = workshop.write("a.csv", "".join(blanks + row for row in rows).encode())
    reader = CsvReader(ByteSource(path, "none"), max_bytes=1000)
    found = [(row.line, row.value) for row in reader]
    # the second row takes 41 lines
    assert [line for line, _ in found] == [182, 313, 404]
    assert found[0][1] == {"instruction": "i", "output": field}
    assert found[1][1].reason == "has 1 columns, the header has 2"
    assert found[2][1] == {"instruction": "i", "output": "o"}


def test_any_number_of_blank_lines_may_come_before_a_header(workshop):
    path = workshop.write("a.csv", b"\n" * 3000 + b"instruction,output\ni,o\n")
    rows = list(CsvReader(ByteSource(path, "none"), max_bytes=1000))
    assert [row.value for row in rows] == [{"instruction": "i", "output": "o"}]


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_a_bare_return_after_blank_lines_stays_in_its_row(workshop, monkeypatch, block):
    content = b"instruction,output\n" + b"\n" * 11 + b"\ri,o\n"
    path = workshop.write("a.csv", content)
    whole = [(row.raw, str(row.value)) for row in CsvReader(ByteSource(path, "none"))]
    monkeypatch.setattr("selectit_dagster.data.byte_sources.BLOCK", block)
    again = [(row.raw, str(row.value)) for row in CsvReader(ByteSource(path, "none"))]
    assert again == whole


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_blocks_of_a_csv_are_not_read_line_by_line(workshop, monkeypatch, end):
    monkeypatch.setattr("selectit_dagster.data.byte_sources.BLOCK", 101)
    lines, read = csv_reader.bounded_lines, []
    monkeypatch.setattr(
        csv_reader,
        "bounded_lines",
        lambda *given: (read.append(line) or line for line in lines(*given)),
    )
    blanks = end * 10_000
    content = blanks + b"instruction,output\n" + blanks + b"i,o\n" + blanks
    path = workshop.write("a.csv", content)
    assert len(list(CsvReader(ByteSource(path, "none"), max_bytes=1000))) == 1
    assert len(read) < 1000


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_a_line_of_many_blocks_does_not_fill_the_memory(workshop, monkeypatch, kind):
    import tracemalloc

    monkeypatch.setattr("selectit_dagster.data.byte_sources.BLOCK", 1 << 16)
    size = 24 << 20
    parts = [GOOD, b'{"instruction": "i", "output": "' + b"x" * size + b'"}', GOOD]
    if kind == "csv":
        content = b"instruction,output\ni,o\ni," + b"x" * size + b"\ni,o\n"
    else:
        content = b"[" + b",".join(parts) + b"]" if kind == "json" else b"\n".join(parts)
    path = workshop.write("a", content)
    del content, parts
    section = DatasetSection(path=str(path), format=kind)
    opened = readers.open_source(section, find_source(section), max_bytes=1 << 20)
    tracemalloc.start()
    outcomes = [isinstance(row.value, dict) for row in opened.rows]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcomes == [True, False, True]
    assert peak < size / 2  # the csv module holds a field at four bytes a character


def test_csv_rows_of_the_wrong_width_are_named(workshop):
    path = workshop.write(
        "a.csv", "instruction,output\na,b\nc\nd,e,f\n\ng,h\n\xff,x\n".encode("latin-1")
    )
    manifest = workshop.read(path)
    assert manifest.counts == {"read": 5, "kept": 2, "rejected": 3}
    assert [r["reason"] for r in workshop.rejected] == [
        "has 1 columns, the header has 2",
        "has 3 columns, the header has 2",
        "is not valid UTF-8",
    ]
    assert [r["line"] for r in workshop.rejected] == [3, 4, 7]


def test_a_quote_over_many_lines_does_not_fill_the_memory(workshop, monkeypatch):
    import tracemalloc

    monkeypatch.setattr("selectit_dagster.data.byte_sources.BLOCK", 1 << 16)
    size = 1 << 20
    path = workshop.write("a.csv", b'instruction,output\na,"' + b"x\n" * (size // 2) + b'"\nc,d\n')
    tracemalloc.start()
    with pytest.raises(UserError, match="starts on line 2 is never closed, or not within"):
        list(CsvReader(ByteSource(path, "none"), max_bytes=size // 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the field at four bytes a character, and the row as it was read; not an object a line
    assert peak < 6 * size


def test_parquet_with_the_wrong_types_is_rejected_by_name(workshop):
    path = workshop.folder / "a.parquet"
    pq.write_table(pa.table({"instruction": [1, 2], "output": [["x"], None]}), path)
    with pytest.raises(UserError, match="instruction is a number, expected text"):
        workshop.read(path, max_reject_share=0.05)
    assert [r["position"] for r in workshop.rejected] == [0, 1]


def test_a_table_with_a_column_twice_is_refused(workshop):
    path = workshop.folder / "a.parquet"
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    names = ["instruction", "output", "output"]
    pq.write_table(pa.Table.from_arrays(columns, names=names), path)
    with pytest.raises(UserError, match=r"a\.parquet has the column 'output' more than once"):
        workshop.read(path)


def test_files_of_several_formats_are_one_dataset(workshop, make):
    (workshop.folder / "several").mkdir()
    workshop.lines("several/a.jsonl", make(2))
    workshop.write("several/b.csv", "instruction,output\na,b\n")
    assert workshop.read(workshop.folder / "several").counts["kept"] == 3
    assert json.loads(workshop.records[2]["raw"]) == {"instruction": "a", "output": "b"}


def test_parquet_text_that_is_no_utf8_is_rejected_by_name(workshop):
    good = pa.array([b"i", b"\xff", b"k"], pa.binary()).view(pa.string())
    path = workshop.folder / "a.parquet"
    pq.write_table(pa.table({"instruction": good, "output": ["a", "b", "c"]}), path)
    assert workshop.read(path).counts == {"read": 3, "kept": 2, "rejected": 1}
    assert workshop.rejected[0]["field"] == "instruction"


def test_a_damaged_file_among_others_is_named(workshop, make):
    folder = workshop.folder / "parts"
    folder.mkdir()
    for name in ("train-0.parquet", "train-1.parquet"):
        pq.write_table(pa.Table.from_pylist(make(2050)), folder / name)
    (folder / "train-1.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"train-1\.parquet cannot be read as Parquet") as caught:
        workshop.read(folder)
    assert "\n" not in caught.value.message
    assert "damaged" in caught.value.hint


def test_a_truncated_parquet_file_is_no_traceback(workshop, make):
    path = workshop.folder / "a.parquet"
    pq.write_table(pa.Table.from_pylist(make(100)), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        workshop.read(path)


def test_above_the_share_of_rejects_the_reasons_are_listed(workshop, make):
    records = [*make(6), {"instruction": 1}, {"instruction": "x"}, {"instruction": "y"}]
    path = workshop.lines("a.jsonl", records)
    with pytest.raises(UserError, match=r"3 of 9 records \(33.3%\)") as caught:
        workshop.read(path, max_reject_share=0.2)
    assert "output is missing (2 records, first at position 7, 8)" in caught.value.message
    assert len(workshop.rejected) == 3
    assert not (workshop.out / "manifest.json").exists()
    assert workshop.read(path, max_reject_share=0.34).counts["kept"] == 6


def test_a_file_that_changes_while_it_is_read_is_refused(workshop, make, monkeypatch):
    path = workshop.write("a.json", make(50))
    original = ingest_pass.Collector.run

    def run_and_change(self):
        original(self)
        path.write_bytes(path.read_bytes() + b" ")

    monkeypatch.setattr(ingest_pass.Collector, "run", run_and_change)
    with pytest.raises(PassingError, match="was changed while it was read"):
        workshop.read(path)
    assert not (workshop.out / "manifest.json").exists()


def test_a_file_that_is_gone_when_it_was_read_is_one_that_changed(workshop, make, monkeypatch):
    path = workshop.write("a.json", make(50))
    original = ingest_pass.Collector.run

    def run_and_remove(self):
        original(self)
        path.unlink()

    monkeypatch.setattr(ingest_pass.Collector, "run", run_and_remove)
    with pytest.raises(PassingError, match="was changed while it was read"):
        workshop.read(path)


def test_what_is_wrong_with_a_file_that_changes_meanwhile_is_that_it_changes(
    workshop, make, monkeypatch
):
    path = workshop.write("a.json", make(50))
    original = ingest_pass.Collector.run

    def change_and_run(self):
        path.write_bytes(path.read_bytes()[:-40] + b'"' + b" " * 60)
        original(self)

    monkeypatch.setattr(ingest_pass.Collector, "run", change_and_run)
    with pytest.raises(PassingError, match="was changed while it was read"):
        workshop.read(path)
    monkeypatch.undo()
    with pytest.raises(UserError) as caught:
        workshop.read(path)
    assert not isinstance(caught.value, PassingError)


def test_the_first_records_may_all_be_unusable(workshop, make):
    lines = [b"null"] * 300 + [json.dumps(r).encode() for r in make(300)]
    manifest = workshop.read(workshop.write("a.jsonl", b"\n".join(lines)), format="jsonl")
    assert manifest.counts == {"read": 600, "kept": 300, "rejected": 300}
    assert manifest.details["layout"] == "alpaca"
    assert workshop.rejected[299]["line"] == 300


def test_nothing_usable_is_refused_whatever_the_share(workshop):
    with pytest.raises(UserError, match="2 of 2 records"):
        workshop.read(workshop.lines("a.jsonl", [1, 2]), format="jsonl")


def test_control_characters_do_not_reach_the_page(workshop):
    records = [{"instruction": "\x1b[31mred\u202e", "output": "a\nb"}]
    manifest = workshop.read(workshop.lines("a.jsonl", records))
    assert manifest.details["preview"][0]["instruction"] == "\\x1b[31mred\\u202e"
    assert manifest.details["preview"][0]["response"] == "a\\nb"


def test_a_second_reader_of_the_same_folder_is_refused(workshop, make):
    from selectit_dagster.artefacts.files import folder_lock

    path = workshop.write("a.json", make(1))
    with folder_lock(workshop.out, "a test"), pytest.raises(UserError, match="in use by a test"):
        ingest(IngestRequest(DatasetSection(path=str(path))), workshop.out)


def test_a_last_line_that_is_too_long_is_no_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "xxxxxxxxxxxx"}')
    rows = list(read_lines(ByteSource(path, "none"), max_bytes=10))
    assert [row.raw for row in rows] == [b'{"a": 1}', b""]
    assert rows[1].value.reason == "is larger than 10 bytes"
