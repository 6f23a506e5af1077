"""Hostile input: a message or nothing, quickly, in little memory. The long version: torture."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.errors import UserError
from tools.torture import targets
from tools.torture.inputs import LONGEST_SECONDS, attack

_NAMES = [entry.name for entry in targets.attacks()]
_MB = 1 << 20


@pytest.mark.parametrize("name", _NAMES)
def test_mutated_input_ends_in_a_message_or_in_nothing(name):
    found = attack(name, 60, seed=7)
    assert found.findings == {}
    assert found.inputs == 60
    assert found.slowest < LONGEST_SECONDS


# read a dataset in a process of its own, with little memory to allocate
_READ = """
import json, resource, sys, time
from pathlib import Path
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import DatasetSection
import selectit_dagster.data.ingest_pass, pyarrow.parquet
path, folder, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
started = time.monotonic()
try:
    counts = ingest(IngestRequest(DatasetSection(path=path, max_reject_share=1.0)), folder).counts
    said = ""
except UserError as error:
    counts, said = {}, str(error)
# of this program alone: ru_maxrss would begin with what the parent had
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
print(json.dumps({"counts": counts, "said": said, "peak_mb": peak,
                  "seconds": time.monotonic() - started}))
"""


def read(path: Path, folder: Path, memory: int = 600 * _MB):
    """Read ``path`` with at most ``memory`` bytes on top of the interpreter."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory limits are for Linux")
    answer = subprocess.run(
        [sys.executable, "-c", _READ, str(path), str(folder / "out"), str(memory)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return json.loads(answer.stdout)


def bomb(path: Path, megabytes: int, begin: bytes = b"", filler: bytes = b" ") -> None:
    """Write a gzip file that unpacks to so many MiB, by streaming: it packs to a thousandth."""
    packer = zlib.compressobj(9, wbits=31)
    block = filler * _MB
    with path.open("wb") as handle:
        handle.write(packer.compress(begin))
        for _ in range(megabytes):
            handle.write(packer.compress(block))
        handle.write(packer.flush())


GOOD = b'{"instruction": "Say 1.", "output": "It is 1."}\n'


# `make torture` asks for the sizes that were promised: 10 GB unpacked, a line of 1 GB
_BOMB_MB = int(os.environ.get("SELECTIT_BOMB_MB", "800"))
_LINE_MB = int(os.environ.get("SELECTIT_LINE_MB", "700"))


@pytest.mark.parametrize(
    "filler",
    [b"x", *(pytest.param(other, marks=pytest.mark.slow) for other in (b" ", b"\n", b"["))],
)
def test_a_gzip_bomb_costs_time_and_not_memory(tmp_path, filler):
    path = tmp_path / "bomb.jsonl.gz"
    bomb(path, _BOMB_MB, GOOD * 3, filler)
    assert path.stat().st_size < _BOMB_MB * _MB / 400
    found = read(path, tmp_path)
    assert found["counts"].get("kept") == 3, found
    assert found["peak_mb"] < 700


def test_a_bomb_of_records_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "bomb.json.gz"
    bomb(path, 300, b"[", b'"')
    assert "not valid JSON" in read(path, tmp_path)["said"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_line_longer_than_memory_is_rejected_and_named(tmp_path, kind):
    path = tmp_path / f"long.{kind}"
    begin, end = {
        "jsonl": (GOOD + b'{"instruction": "i", "output": "', b'"}\n' + GOOD),
        "json": (b"[" + GOOD + b', {"instruction": "i", "output": "', b'"},' + GOOD + b"]"),
        "csv": (b"instruction,output\na,b\nc,", b"\ne,f\n"),
    }[kind]
    with path.open("wb") as handle:
        handle.write(begin)
        for _ in range(_LINE_MB):
            handle.write(b"x" * _MB)
        handle.write(end)
    found = read(path, tmp_path)
    path.unlink()
    assert found["counts"] == {"read": 3, "kept": 2, "rejected": 1}, found
    assert found["peak_mb"] < 700


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"instruction":'])
def test_json_nested_a_hundred_thousand_deep_is_a_message(tmp_path, kind, opening):
    path = tmp_path / f"deep.{kind}"
    deep = opening * 100_000
    path.write_bytes(b"[" + deep if kind == "json" else GOOD + deep + b"\n")
    found = read(path, tmp_path)
    if kind == "jsonl":
        assert found["counts"] == {"read": 2, "kept": 1, "rejected": 1}, found
    else:
        assert "line 1" in found["said"], found


def _lying(change) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"instruction": ["a" * 50] * 5000, "output": ["b"] * 5000})
    pq.write_table(table, sink, row_group_size=1000)
    data = bytearray(sink.getvalue())
    change(data)
    return bytes(data)


def _each_footer_byte(data: bytearray) -> range:
    length = int.from_bytes(data[-8:-4], "little")
    return range(len(data) - 8 - length, len(data) - 4)


def test_a_parquet_file_that_lies_about_its_sizes_is_a_message(tmp_path):
    """Every byte of the footer in turn becomes as large as it can be, and a page's header too."""
    from selectit_dagster.data.arrow_reader import open_parquet
    from selectit_dagster.errors import UserError

    whole = _lying(lambda data: None)
    path = tmp_path / "lie.parquet"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended: dict[str, int] = {"read": 0, "refused": 0}
    for at in [*_each_footer_byte(bytearray(whole))[::3], *range(4, 60, 2)]:
        data = bytearray(whole)
        data[at] = 0xFF if data[at] != 0xFF else 0x7F
        path.write_bytes(data)
        try:
            rows = sum(1 for _ in open_parquet(path))
            assert rows <= 10_000
            ended["read"] += 1
        except UserError:
            ended["refused"] += 1
    assert ended["refused"] > 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


def test_a_benchmark_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    from selectit_dagster.errors import UserError
    from selectit_dagster.evaluation import question_files

    monkeypatch.setattr(question_files, "_MOST_BYTES", 1 << 16)
    path = tmp_path / "questions.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (1 << 20)))
    with pytest.raises(UserError, match="holds more than"):
        question_files.read_jsonl(path)


@pytest.mark.parametrize("name", ["score part", "ranking", "parquet"])
def test_a_column_whose_name_is_no_text_is_a_message(name):
    """Found by the long campaign: the name is decoded outside of what Arrow says is damage."""
    one = next(entry for entry in targets.attacks() if entry.name == name)
    whole = one.seeds[0]
    names = {"score part": b"probabilities", "ranking": b"score", "parquet": b"output"}
    assert names[name] in whole
    with pytest.raises(UserError):
        one.target(whole.replace(names[name], b"\xb9" + names[name][1:]))
