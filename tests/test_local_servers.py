"""Servers are started, waited for, named when they fail, and ended with all that they started."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.local_servers import (
    Service,
    ServiceFailedError,
    answers,
    free_port,
    running,
    stop_signals,
    wait_healthy,
)

ROOT = Path(__file__).resolve().parents[1]
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
        assert wait_healthy(service, check, 30)
        assert answers(service.address)
        stopping = threading.Event()
        stopping.set()  # the user wants to stop
        assert not wait_healthy(service, check, 30, stopping)
    assert not answers(service.address)


def test_stopping_ends_what_a_service_started_and_what_ignores_it(tmp_path):
    parent = _service("parent", _PARENT, tmp_path)
    stubborn = _service("stubborn", _STUBBORN, tmp_path)
    with running([parent, stubborn], grace=1.0):
        _until(lambda: stubborn.log.read_text() and parent.log.read_text())
        processes = [psutil.Process(int(s.log.read_text())) for s in (parent, stubborn)]
        assert all(p.is_running() for p in processes)
    _until(lambda: not any(p.is_running() for p in processes), 5)


def test_services_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import signal, sys, time; from pathlib import Path; "
        "from selectit_dagster.local_servers import Service, running; "
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
        wait_healthy(bad, check, 30)
    assert caught.value.tail == ["no such table: runs"]
    assert not psutil.pid_exists(int(good.log.read_text() or 0) or 10**8)


def test_a_service_that_never_answers_is_given_up(tmp_path):
    silent = _service("silent", "import time; time.sleep(600)", tmp_path)
    with (
        pytest.raises(ServiceFailedError, match="silent did not answer within 1 s"),
        running([silent]) as check,
    ):
        wait_healthy(silent, check, 1)


def test_a_service_that_is_not_installed_is_a_clear_message(tmp_path):
    absent = Service("Absent", ["/nowhere/absent"], tmp_path / "absent.log", "http://127.0.0.1:1/")
    with (
        pytest.raises(ServiceFailedError, match="Absent ended with exit code 127") as caught,
        running([absent]) as check,
    ):
        wait_healthy(absent, check, 30)
    assert caught.value.tail == ["/nowhere/absent cannot be started: No such file or directory"]


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


def test_signals_are_noted_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as stopping:
        assert not stopping.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stopping.is_set()
    assert signal.getsignal(signal.SIGTERM) is before
