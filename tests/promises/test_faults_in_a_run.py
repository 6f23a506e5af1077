"""Faults that come in the middle of a whole run: a server, a lock, a limit on memory.

Minutes together; `make torture` runs them too. The result is compared with an unbroken run's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selectit_dagster.local_servers import free_port
from selectit_dagster.orchestration.resources import make_tracker
from tools.torture.world import leftovers, pipeline_of, result, write_world

pytestmark = pytest.mark.slow
_MAIN = "from selectit_dagster.cli.main import main; main()"
_LAST = "sensitivity"


def until(condition: Any, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def start_run(experiment: Path, home: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, "run", str(experiment), "--home", str(home),
         "--upto", _LAST],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def finished(run: subprocess.Popen[str]) -> str:
    said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    assert "Traceback" not in said
    return said


def comparable(experiment: Path, home: Path) -> Any:
    pipeline = pipeline_of(experiment, home)
    assert leftovers(pipeline) == []
    return json.loads(json.dumps(result(pipeline)))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Any]:
    """An experiment and what an unbroken run of it makes."""
    folder = tmp_path_factory.mktemp("world")
    experiment = write_world(folder)
    finished(start_run(experiment, folder / "calm"))
    return experiment, comparable(experiment, folder / "calm")


class Server:
    """A tracking server of MLflow's own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port(0)
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
                 "--port", str(self.port), "--workers", "1",
                 "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                 "--artifacts-destination", str(self.folder / "artifacts")],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(self.answers)

    def answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(urllib.error.URLError, OSError):
            return bool(opener.open(f"{self.address}/health", timeout=5).status == 200)
        return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def runs(self) -> list[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(self.folder / "server.db")) as store:
            return store.execute("select name, status from runs").fetchall()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    one = Server(tmp_path)
    one.start()
    yield one
    one.kill()


def test_a_tracking_server_killed_and_restarted_in_the_middle_loses_no_work(
    world, server, tmp_path
):
    experiment, expected = world
    home = tmp_path / "home"
    pipeline = pipeline_of(experiment, home)
    run = start_run(experiment, home, MLFLOW_TRACKING_URI=server.address)
    until((pipeline.home.raw / "manifest.json").exists)
    server.kill()
    until((pipeline.home.curated / "manifest.json").exists, 400)
    server.start()
    said = finished(run)
    assert comparable(experiment, home) == expected
    # what could not be noted is told, and what came after the restart was noted
    assert make_tracker(pipeline).failures()
    assert "MLflow" in said
    assert "FINISHED" in {status for _, status in server.runs()}


@contextlib.contextmanager
def held(database: Path, seconds: float) -> Iterator[None]:
    """Hold a lock on a database that nobody else can pass, from when it is there on."""
    over = threading.Event()
    taken: list[str] = []

    def hold() -> None:
        while not over.is_set():
            if database.exists():
                with contextlib.closing(sqlite3.connect(database, timeout=60)) as store:
                    try:
                        store.execute("BEGIN EXCLUSIVE")
                    except sqlite3.OperationalError:
                        time.sleep(0.1)
                        continue
                    taken.append(database.name)
                    over.wait(seconds)
                    store.rollback()
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert taken


@pytest.mark.parametrize("name", ["mlflow/mlflow.db", "dagster/history/runs.db"])
def test_a_database_that_another_program_locks_for_a_while_is_waited_for(world, tmp_path, name):
    experiment, expected = world
    home = tmp_path / "home"
    with held(home / name, 12.0):
        said = finished(start_run(experiment, home))
    assert comparable(experiment, home) == expected
    assert "locked" not in said


_LIMITED = """
import json, re, resource, sys
from pathlib import Path
from selectit_dagster.experiment import RatingSection, ScoringModel
from selectit_dagster.inference.backends.transformers import TransformersBackend
from selectit_dagster.rating import scoring
from selectit_dagster.rating.scoring import ScoringRequest, score

model, records, out, spare = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
request = ScoringRequest(
    records,
    ScoringModel(name="m", path=model),
    RatingSection(num_prompts=2, max_batch_tokens=1 << 17),
)
asked, rate, draw = [], TransformersBackend.rate, scoring.draw
unlimited = resource.getrlimit(resource.RLIMIT_DATA)[1]

def limited(self, batch):
    asked.append(len(batch))
    if len(asked) == 2 and spare:  # the first batch chose the way; the limit falls on the second
        said = Path("/proc/self/status").read_text()
        used = int(re.search(r"VmData:\\s+(\\d+)", said)[1]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (used + spare, unlimited))
    return rate(self, batch)

def free(*arguments):  # what comes after the batches, such as the library that draws
    resource.setrlimit(resource.RLIMIT_DATA, (unlimited, unlimited))
    return draw(*arguments)

TransformersBackend.rate, scoring.draw = limited, free
manifest = score(request, out)
print(json.dumps([manifest.counts, manifest.details.get("warnings", [])]))
"""


def test_memory_that_ends_in_the_middle_of_a_batch_halves_it_and_loses_nothing(
    tmp_path, tiny_model_folder
):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from selectit_dagster.rating.score_store import read_scores

    texts = [f"Record {i}: " + "count the words of this line " * (i % 9 + 1) for i in range(900)]
    columns = {
        "record_id": [f"r{i:04d}" for i in range(900)],
        "instruction": texts,
        "input": [""] * 900,
        "response": ["one two three"] * 900,
    }
    pq.write_table(pa.table(columns), tmp_path / "records.parquet")
    found = {}
    for name, spare in (("free", 0), ("limited", 24 << 20)):
        answer = subprocess.run(
            [sys.executable, "-c", _LIMITED, str(tiny_model_folder),
             str(tmp_path / "records.parquet"), str(tmp_path / name), str(spare)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr[-2000:]
        counts, warnings = json.loads(answer.stdout.splitlines()[-1])
        assert counts["ok"] == 900, (name, counts, warnings)
        found[name] = (read_scores(tmp_path / name, 2), warnings)
    assert any("did not fit into memory" in w for w in found["limited"][1])
    assert not any("did not fit into memory" in w for w in found["free"][1])
    free, limited = found["free"][0], found["limited"][0]
    assert np.allclose(free.probabilities, limited.probabilities, atol=1e-6)
