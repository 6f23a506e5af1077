"""Servers on this machine: free ports, and servers started, waited for and ended for certain.

Each runs under a guard (``server_guard.py``), which ends it with the block, and also when this
process is killed outright: a server that outlived it would keep its port or a GPU's memory.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from selectit_dagster.errors import UserError

LOOPBACK = "127.0.0.1"
_GRACE = 30.0  # between asking a server to end and killing it: Dagster's own asks its children
_GUARD = Path(__file__).with_name("server_guard.py")


@dataclass(frozen=True)
class Service:
    """One server: its name for people, its command, its log (the one before is kept as ``.1``).

    ``address`` answers with 200 once it is up; ``environment`` comes on top of this process's own.
    """

    name: str
    argv: list[str]
    log: Path
    address: str
    environment: dict[str, str] = field(default_factory=dict)


class ServiceFailedError(Exception):
    """A server ended by itself, with the exit code ``code``, or never answered."""

    def __init__(self, service: Service, what: str, code: int | None = None) -> None:
        self.log, self.tail, self.code = service.log, tail(service.log), code
        super().__init__(f"{service.name} {what}")


@contextlib.contextmanager
def running(services: list[Service], grace: float = _GRACE) -> Iterator[Callable[[], None]]:
    """Run servers while the block lasts, each the leader of its own process group.

    Yields
    ------
    A function that raises ServiceFailedError when one of them has ended.
    """
    started: list[tuple[Service, subprocess.Popen[bytes]]] = []

    def check() -> None:
        for service, guard in started:
            if (code := guard.poll()) is not None:
                raise ServiceFailedError(service, f"ended with exit code {code}", code)

    try:
        for service in services:
            started.append((service, _start(service, grace)))
        yield check
    finally:
        for _, guard in started:
            if guard.stdin is not None:
                guard.stdin.close()
        for _, guard in started:
            guard.wait()


def _start(service: Service, grace: float) -> subprocess.Popen[bytes]:
    service.log.parent.mkdir(parents=True, exist_ok=True)
    if service.log.exists():
        service.log.replace(service.log.with_name(service.log.name + ".1"))
    with service.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-I", str(_GUARD), str(grace), *service.argv],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **service.environment},
            start_new_session=True,
        )


def wait_healthy(
    service: Service,
    check: Callable[[], None],
    timeout: float,
    stopping: threading.Event | None = None,
) -> bool:
    """Wait until a server answers; False when the user wanted to stop meanwhile.

    Raises
    ------
    ServiceFailedError
        When one of the servers ended, or this one did not answer within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    stopping = stopping or threading.Event()
    while not stopping.wait(0.3):
        check()
        if answers(service.address):
            return True
        if time.monotonic() > deadline:
            raise ServiceFailedError(service, f"did not answer within {timeout:.0f} s")
    return False


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT, SIGTERM and SIGHUP set.

    The handlers only note the signal, so that ending services is never interrupted half-way;
    the former handlers are back when the block ends.
    """
    came = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, lambda *_: came.set()) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def answers(address: str) -> bool:
    """Tell whether ``address`` (on loopback) answers with status 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def tail(path: Path, lines: int = 20) -> list[str]:
    """Return the last lines of a log, without reading more than 64 KiB of it."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - (1 << 16)))
        text = handle.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]


def free_port(preferred: int = 0) -> int:
    """Return ``preferred`` when nothing listens there on loopback, else a port that is free."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # a server that has just ended leaves its port in TIME_WAIT, which servers ignore
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError("no port is free on this machine", hint="end some servers and try again")
