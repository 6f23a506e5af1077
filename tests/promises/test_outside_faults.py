"""Faults of the machine: one message, no half artefact, and the same command goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selectit_dagster.artefacts.files import folder_lock, write_bytes
from selectit_dagster.artefacts.manifest import read_manifest, verify
from selectit_dagster.data.curation import CurationRequest, curate
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.errors import UserError, of_the_machine
from selectit_dagster.experiment import CurationSection, DatasetSection
from tools.torture.world import pipeline_of, write_world

_MAIN = "from selectit_dagster.cli.main import main; main()"


def write_data(path: Path, records: int) -> Path:
    """Write records that do not pack well."""
    with path.open("w", encoding="utf-8") as handle:
        for i in range(records):
            row = {"instruction": f"Say {i}.", "output": os.urandom(200).hex()}
            handle.write(json.dumps(row) + "\n")
    return path


@contextlib.contextmanager
def mounted(place: Path, options: str):
    """Mount a small file system in memory, where that is permitted."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],  # noqa: S607
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)  # noqa: S607


def command(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", before + _MAIN, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_full_disk_is_one_message_and_leaves_no_half_artefact(tmp_path):
    data = write_data(tmp_path / "data.jsonl", 6000)
    with mounted(tmp_path / "small", "size=1m") as place:
        with pytest.raises((OSError, UserError)) as caught:
            ingest(IngestRequest(DatasetSection(path=str(data))), place / "raw")
        lacking = of_the_machine(caught.value)
        assert "the disk is full" in str(lacking or caught.value)
        assert read_manifest(place / "raw") is None
        assert [p.name for p in (place / "raw").iterdir() if p.stat().st_size > 100_000] == []
        # with room again, the same request goes on
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)  # noqa: S607
        assert ingest(IngestRequest(DatasetSection(path=str(data))), place / "raw").counts["kept"]
        verify(place / "raw")


def test_the_command_says_that_the_disk_is_full(tmp_path):
    data = write_data(tmp_path / "data.jsonl", 6000)
    with mounted(tmp_path / "small", "size=1m") as place:
        answer = command(
            "select", "-i", data, "-m", "./absent", "-o", tmp_path / "x", "--scores", place
        )
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_read_only_home_is_one_message(tmp_path):
    path = write_world(tmp_path)
    with mounted(tmp_path / "home", "size=1m,ro"):
        answer = command("run", path, "--home", tmp_path / "home")
    assert answer.returncode == 2
    assert "cannot be written: Read-only file system" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 2


@pytest.mark.slow
def test_a_limit_on_open_files_is_one_message(tmp_path):
    path = write_world(tmp_path)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24));"
    answer = command(
        "run", path, "--home", tmp_path / "home", "--upto", "raw_dataset", before=limit
    )
    assert answer.returncode in (0, 2), answer.stderr[-2000:]
    assert "Traceback" not in answer.stderr


def test_a_limit_on_the_size_of_files_is_one_message(tmp_path):
    data = write_data(tmp_path / "data.jsonl", 3000)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
    answer = command(
        "select", "-i", data, "-m", "./absent", "-o", tmp_path / "x",
        "--scores", tmp_path / "scores", before=limit,
    )  # fmt: skip
    assert answer.returncode == 2, answer.stderr[-2000:]
    assert "Traceback" not in answer.stderr
    assert not list((tmp_path / "scores").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "the disk is full: /a/b"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "disk is full"),
        (RuntimeError("Could not write file: No space left on device"), "disk is full"),
    ],
)
def test_what_the_machine_lacks_is_said_with_a_remedy(error, said):
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        found = of_the_machine(one)
        assert found is not None
        assert said in found.message
        assert "it goes on" in found.hint
    assert of_the_machine(ValueError("something else")) is None


def test_a_clock_that_jumps_changes_no_result(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data.jsonl", 300)
    request = IngestRequest(DatasetSection(path=str(data)))
    plain = ingest(request, tmp_path / "a")
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 86_400 * 400)
    monkeypatch.setattr(time, "monotonic", time.monotonic)
    jumped = ingest(request, tmp_path / "b")
    assert (jumped.digest, jumped.counts) == (plain.digest, plain.counts)
    assert ingest(request, tmp_path / "b").digest == plain.digest  # still current
    curated = [
        curate(CurationRequest(tmp_path / name, CurationSection()), tmp_path / f"c{name}").digest
        for name in ("a", "b")
    ]
    assert curated[0] == curated[1]


def test_a_slow_disk_is_only_slow(tmp_path, monkeypatch):
    real = os.fsync
    calls = []

    def slow(descriptor):
        calls.append(descriptor)
        time.sleep(0.02)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    data = write_data(tmp_path / "data.jsonl", 50)
    assert (
        ingest(IngestRequest(DatasetSection(path=str(data))), tmp_path / "a").counts["kept"] == 50
    )
    verify(tmp_path / "a")
    assert len(calls) > 3


def test_a_disk_that_fails_to_flush_leaves_the_old_content(tmp_path, monkeypatch):
    target = tmp_path / "f"
    write_bytes(target, b"old")

    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_tracking_server_that_stops_and_comes_back_loses_its_notes_and_no_work(tmp_path):
    from selectit_dagster.orchestration.resources import make_tracker

    tracker = make_tracker(pipeline_of(write_world(tmp_path), tmp_path / "home"))
    tracker.wait = lambda seconds: None
    state = {"up": True, "calls": 0}

    def call():
        state["calls"] += 1
        if not state["up"]:
            raise ConnectionError("connection refused")
        return "done"

    assert tracker.attempt("log", call) == "done"
    state["up"] = False
    assert [tracker.attempt("log", call) for _ in range(4)] == [None] * 4
    assert state["calls"] == 1 + 4 + 1 + 1 + 1  # patient once, then one try each
    state["up"] = True
    assert tracker.attempt("log", call) == "done"
    assert len(tracker.failures()) == 4


def test_half_a_line_in_the_notes_of_failures_is_passed_over(tmp_path):
    from selectit_dagster.orchestration.resources import make_tracker

    tracker = make_tracker(pipeline_of(write_world(tmp_path), tmp_path / "home"))
    tracker.note_failure("a", ValueError("x"))
    with tracker.failures_file.open("a") as handle:
        handle.write('{"at": "2026-')
    assert [entry["what"] for entry in tracker.failures()] == ["a"]


def test_a_second_run_on_a_home_is_refused_with_the_holders_name(tmp_path):
    from selectit_dagster.launch.run import run_experiment

    path = write_world(tmp_path)
    pipeline = pipeline_of(path, tmp_path / "home")
    with (
        folder_lock(pipeline.home.folder, "selectit run"),
        pytest.raises(UserError, match=rf"in use by selectit run \(process {os.getpid()}"),
    ):
        run_experiment(path, tmp_path / "home", upto="raw_dataset")
    assert not (pipeline.home.raw / "manifest.json").exists()


def test_a_model_that_is_changed_under_a_running_job_is_refused(tmp_path, tiny_model_folder):
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    from selectit_dagster.experiment import RatingSection, ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest, score

    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, model)
    columns = {"record_id": ["a", "b"], "instruction": ["x", "y"], "input": ["", ""]}
    pq.write_table(pa.table({**columns, "response": ["1", "2"]}), tmp_path / "records.parquet")
    request = ScoringRequest(
        tmp_path / "records.parquet",
        ScoringModel(name="m", path=str(model)),
        RatingSection(num_prompts=2, max_batch_tokens=64),
    )

    last = (model / "model.safetensors").read_bytes()[-1]

    class Changing:
        def update(self, done, total, **figures):
            # in place, not cut: the kernel ends a process whose mapped file is cut off
            with (model / "model.safetensors").open("r+b") as handle:
                handle.seek(-1, os.SEEK_END)
                handle.write(bytes([last ^ 1]))

    with pytest.raises(UserError, match="was changed while"):
        score(request, tmp_path / "out", Changing())
    assert not list((tmp_path / "out").glob("part-*"))
    assert read_manifest(tmp_path / "out") is None
    assert score(request, tmp_path / "out").counts["ok"] == 2
