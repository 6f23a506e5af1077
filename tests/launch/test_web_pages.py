"""The web pages together: started in order, checked, ended with nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from small_home import make_pipeline, write_experiment

from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.errors import UserError
from selectit_dagster.launch.web_pages import serve
from selectit_dagster.orchestration.resources import make_tracker
from selectit_dagster.orchestration.services import (
    Service,
    ServiceFailedError,
    answers,
    free_port,
    ports,
    running,
    stop_signals,
    wait_healthy,
)

ROOT = Path(__file__).resolve().parents[2]
_SERVER = "import http.server, sys; print('up', flush=True); " + (
    "http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), "
    "bind='127.0.0.1')"
)
_PARENT = (
    "import subprocess, sys, time; "
    "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "print(c.pid, flush=True); time.sleep(600)"
)
_STUBBORN = (
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print(os.getpid(), flush=True); time.sleep(600)"
)


NEVER = threading.Event()


def _service(name: str, code: str, folder: Path, *arguments: str, port: int = 1):
    argv = [sys.executable, "-c", code, *arguments]
    return Service(name, argv, folder / f"{name}.log", f"http://127.0.0.1:{port}/")


def _until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_service_is_waited_for_until_it_answers(tmp_path):
    port = free_port(0)
    service = _service("server", _SERVER, tmp_path, str(port), port=port)
    assert not answers(service.address)
    with running([service]) as check:
        assert wait_healthy(service, check, NEVER, 30)
        assert answers(service.address)
        stopping = threading.Event()
        stopping.set()  # the user wants to stop
        assert not wait_healthy(service, check, stopping, 30)
    assert not answers(service.address)


def test_stopping_ends_what_a_service_started_and_what_ignores_it(tmp_path):
    parent = _service("parent", _PARENT, tmp_path)
    stubborn = _service("stubborn", _STUBBORN, tmp_path)
    with running([parent, stubborn], grace=1.0):
        _until(lambda: stubborn.log.read_text() and parent.log.read_text())
        processes = [psutil.Process(int(s.log.read_text())) for s in (parent, stubborn)]
        assert all(p.is_running() for p in processes)
    _until(lambda: not any(p.is_running() for p in processes), 5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's word is Linux's")
def test_services_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import signal, sys, time; from pathlib import Path; "
        "from selectit_dagster.orchestration.services import Service, running; "
        # as under a shell or a program that has switched it off
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "argv = [sys.executable, '-c', 'import time; time.sleep(600)']; "
        "argv[2] = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'; "
        "context = running([Service('child', argv, Path(sys.argv[1]), 'http://127.0.0.1:1/')]); "
        "context.__enter__(); time.sleep(600)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "child.log")]
    parent = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "child.log"
    _until(lambda: log.exists() and log.read_text())
    child = psutil.Process(int(log.read_text()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_service_that_dies_is_named_with_its_last_lines_and_the_others_end(tmp_path):
    good = _service("good", _STUBBORN, tmp_path)
    bad = _service("bad", "import sys; print('no such table: runs'); sys.exit(3)", tmp_path)
    with (
        pytest.raises(ServiceFailedError, match="bad ended with exit code 3") as caught,
        running([good, bad], grace=0.5) as check,
    ):
        wait_healthy(bad, check, NEVER, 30)
    assert caught.value.tail == ["no such table: runs"]
    assert not psutil.pid_exists(int(good.log.read_text() or 0) or 10**8)


def test_a_service_that_never_answers_is_given_up(tmp_path):
    silent = _service("silent", "import time; time.sleep(600)", tmp_path)
    with (
        pytest.raises(ServiceFailedError, match="silent did not answer within 1 s"),
        running([silent]) as check,
    ):
        wait_healthy(silent, check, NEVER, 1)


def test_a_service_that_is_not_installed_is_a_clear_message(tmp_path):
    absent = Service("Absent", ["/nowhere/absent"], tmp_path / "absent.log", "http://127.0.0.1:1/")
    with pytest.raises(UserError, match="Absent cannot be started"), running([absent]):
        pass


def test_the_log_before_is_kept(tmp_path):
    for text in ("first", "second"):
        with running([_service("short", f"print('{text}')", tmp_path)]):
            _until(lambda text=text: (tmp_path / "short.log").read_text().strip() == text)
    assert (tmp_path / "short.log.1").read_text().strip() == "first"


def test_a_taken_port_is_left_alone():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert free_port(taken) != taken
    assert free_port(taken) == taken


def test_a_machine_without_a_free_port_is_told(monkeypatch):
    def refuse(self, address):
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UserError, match="no port is free on this machine") as caught:
        free_port(3000)
    assert "end some servers" in caught.value.hint


def test_a_home_keeps_the_ports_that_it_chose_even_when_they_are_taken_for_a_while(tmp_path):
    chosen = ports(tmp_path)
    assert ports(tmp_path) == chosen
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", chosen.mlflow))
        holder.listen()
        assert ports(tmp_path) == chosen
        assert ports(tmp_path / "another").mlflow != chosen.mlflow
    (tmp_path / "ports.json").write_text("{", encoding="utf-8")
    assert ports(tmp_path).dagster > 0


def test_links_of_a_home_lead_to_its_ports_unless_told_otherwise(tmp_path, monkeypatch):
    pipeline = make_pipeline(tmp_path, tuning=False)
    tracker = make_tracker(pipeline)
    assert tracker.ui_url == f"http://127.0.0.1:{ports(pipeline.home.root).mlflow}"
    assert tracker.dagster_url == f"http://127.0.0.1:{ports(pipeline.home.root).dagster}"
    assert make_tracker(pipeline, uri="http://mlflow:5000/").ui_url == "http://mlflow:5000"
    monkeypatch.setenv("SELECTIT_MLFLOW_UI", "https://mlflow.example/")
    monkeypatch.setenv("SELECTIT_DAGSTER_UI", "https://dagster.example/")
    tracker = make_tracker(pipeline)
    assert (tracker.ui_url, tracker.dagster_url) == (
        "https://mlflow.example",
        "https://dagster.example",
    )


def test_signals_are_noted_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stopping:
        assert not stopping.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stopping.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_home_is_served_once(tmp_path):
    experiment = write_experiment(tmp_path, tuning=False)
    with (
        folder_lock(tmp_path / "home" / "logs", "selectit ui"),
        pytest.raises(UserError, match="in use by selectit ui"),
    ):
        serve([experiment], tmp_path / "home")


@pytest.fixture
def pages(tmp_path):
    """``selectit ui`` on a fresh home, with both addresses."""
    experiment = write_experiment(tmp_path, tuning=False)
    argv = [sys.executable, "-c", "from selectit_dagster.cli.main import main; main()"]
    argv += ["ui", str(experiment), "--home", str(tmp_path / "home")]
    errors = (tmp_path / "errors.txt").open("w")
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(2)]
    yield process, {name: address for name, address in lines}
    process.kill()
    process.wait()
    errors.close()


def _get(address: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=30) as answer:
        return answer.read()


def _post(address: str, body: dict) -> dict:
    request = urllib.request.Request(  # noqa: S310 - loopback
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return json.loads(answer.read())


def _listening(processes) -> dict[int, str]:
    """Return the ports on which processes accept connections, each with its address."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    # gRPC's sockets are of IPv6 and say IPv4's loopback in its notation
                    found[connection.laddr.port] = connection.laddr.ip.removeprefix("::ffff:")
    return found


def test_both_pages_answer_on_loopback_alone_and_end_together(pages, tmp_path):
    process, addresses = pages
    started = [process, *psutil.Process(process.pid).children(recursive=True)]
    assert b"mlflow" in _get(addresses["MLflow"]).lower()
    query = "{assetNodes {assetKey {path}} repositoriesOrError {... on RepositoryConnection "
    query += "{nodes {location {name}}}}}"
    answer = _post(f"{addresses['Dagster']}/graphql", {"query": query})["data"]
    assert {"path": ["small", "ranking"]} in [node["assetKey"] for node in answer["assetNodes"]]
    assert answer["repositoriesOrError"]["nodes"] == [{"location": {"name": "selectit"}}]
    experiments = _post(
        f"{addresses['MLflow']}/api/2.0/mlflow/experiments/search", {"max_results": 10}
    )["experiments"]
    assert "small" in {entry["name"] for entry in experiments}
    started = [process, *psutil.Process(process.pid).children(recursive=True)]
    heard = _listening(started[1:])
    assert {int(address.rsplit(":", 1)[1]) for address in addresses.values()} <= set(heard)
    assert set(heard.values()) == {"127.0.0.1"}
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    left = [p for p in started[1:] if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert "stopped" in (tmp_path / "errors.txt").read_text()
