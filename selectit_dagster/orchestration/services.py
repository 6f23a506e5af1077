"""Servers that belong together: started in order, health-checked, ended together.

Each service is the leader of its own process group, so that ending it reaches whatever it
started itself. Nothing here knows which servers they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from selectit_dagster.errors import UserError

LOOPBACK = "127.0.0.1"
_TAIL = 20


class ServiceDiedError(Exception):
    """A service ended by itself; ``tail`` holds the last lines of its log."""

    def __init__(self, name: str, code: int, log: Path) -> None:
        self.name, self.code, self.log = name, code, log
        self.tail = tail(log)
        super().__init__(f"{name} ended with exit code {code}")


class ServiceSlowError(Exception):
    """A service did not answer in time."""

    def __init__(self, name: str, seconds: float, log: Path) -> None:
        self.name, self.log = name, log
        self.tail = tail(log)
        super().__init__(f"{name} did not answer within {seconds:.0f} s")


@dataclass(frozen=True)
class Service:
    """One server.

    Attributes
    ----------
    name:
        As a person knows it, in messages.
    argv:
        Command and arguments; no shell is involved.
    log:
        File that takes its output; the one before is kept beside it as ``.1``.
    ready:
        Tells whether the service is up; None when being alive is enough.
    environment:
        Variables on top of this process's own.
    """

    name: str
    argv: list[str]
    log: Path
    ready: Callable[[], bool] | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Services:
    """The services that this process started and must end.

    Parameters
    ----------
    stopping:
        Returns True once the user wants to stop; waiting ends then.
    grace:
        Seconds between asking a service to end and killing it.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False, grace: float = 20.0) -> None:
        self.stopping = stopping
        self.grace = grace
        self._running: list[tuple[Service, subprocess.Popen[bytes]]] = []
        self._seen: dict[int, psutil.Process] = {}

    def start(self, service: Service) -> int:
        """Start a service in a process group of its own and return its process id.

        Raises
        ------
        UserError
            When its command is not installed.
        """
        service.log.parent.mkdir(parents=True, exist_ok=True)
        if service.log.exists():
            service.log.replace(service.log.with_name(service.log.name + ".1"))
        with service.log.open("wb") as log:
            try:
                process = subprocess.Popen(
                    service.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **service.environment},
                    start_new_session=True,
                    preexec_fn=_end_with(os.getpid()),
                )
            except OSError as error:
                raise UserError(
                    f"{service.name} cannot be started: {error}",
                    hint="install the project's requirements again",
                ) from error
        self._running.append((service, process))
        return process.pid

    def check(self) -> None:
        """Raise ServiceDiedError for the first service that ended; note what the others started."""
        for service, process in self._running:
            if (code := process.poll()) is not None:
                raise ServiceDiedError(service.name, code, service.log)
        self._note_descendants()

    def wait_healthy(self, service: Service, timeout: float) -> bool:
        """Wait until a service answers; False when the user wanted to stop meanwhile.

        Raises
        ------
        ServiceDiedError, ServiceSlowError
            When any service ended, or this one did not answer within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.stopping():
            self.check()
            if service.ready is None or service.ready():
                return True
            if time.monotonic() > deadline:
                raise ServiceSlowError(service.name, timeout, service.log)
            time.sleep(0.3)
        return False

    def watch(self, interval: float = 1.0) -> None:
        """Return when the user wants to stop; raise ServiceDiedError when a service ends."""
        while not self.stopping():
            self.check()
            time.sleep(interval)

    def stop(self) -> None:
        """End every service and everything that they started, the last one started first."""
        self._note_descendants()
        for _, process in reversed(self._running):
            _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        while time.monotonic() < deadline and self._alive():
            time.sleep(0.1)
        for _, process in self._running:
            _signal_group(process.pid, signal.SIGKILL)
        for left in self._alive():
            # it had left its group: only the note of what was started finds it
            with contextlib.suppress(psutil.Error):
                left.kill()
        for _, process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        self._running.clear()

    def _note_descendants(self) -> None:
        """Remember the processes below each service, also those that leave its group later."""
        for _, process in self._running:
            with contextlib.suppress(psutil.Error):
                leader = psutil.Process(process.pid)
                for found in (leader, *leader.children(recursive=True)):
                    self._seen[found.pid] = found

    def _alive(self) -> list[psutil.Process]:
        """Return the noted processes that still run (a process id used anew does not count)."""
        for _, process in self._running:
            process.poll()
        alive = []
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive


def _end_with(parent: int) -> Callable[[], None] | None:
    """Return what makes a new process end when ``parent`` does, even killed; None elsewhere.

    A server that outlived a killed parent would keep its port, and a daemon would go on
    starting runs that nobody sees.
    """
    if not sys.platform.startswith("linux"):
        return None
    # found before the fork: after it nothing may be imported or loaded
    control, death_signal = ctypes.CDLL(None).prctl, 1
    end = ctypes.c_ulong(signal.SIGTERM)

    def ask_the_kernel() -> None:
        # whoever started us may have switched the signal off, which children inherit
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        control(death_signal, end)
        if os.getppid() != parent:  # it died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)

    return ask_the_kernel


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def answers(address: str) -> bool:
    """Tell whether ``address`` (on loopback) answers with status 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def free_port(preferred: int) -> int:
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


def tail(path: Path, lines: int = _TAIL) -> list[str]:
    """Return the last lines of a log, without reading more than 64 KiB of it."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - (1 << 16)))
        text = handle.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT, SIGTERM or SIGHUP has come.

    The handlers only note the signal, so that ending services is never interrupted half-way;
    the former handlers are back when the block ends.
    """
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda n, _: came.append(n))
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
