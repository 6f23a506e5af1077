"""Servers that belong together: started, waited for, ended together; and free ports for them."""

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

from selectit_dagster.errors import UserError

LOOPBACK = "127.0.0.1"
_TAIL = 20
_GRACE = 30.0  # between asking a server to end and killing it: Dagster's own asks its children


class ServiceFailedError(Exception):
    """A server ended by itself or never answered; ``tail`` holds the last lines of its log."""

    def __init__(self, service: Service, what: str) -> None:
        self.log, self.tail = service.log, tail(service.log)
        super().__init__(f"{service.name} {what}")


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


@contextlib.contextmanager
def running(services: list[Service], grace: float = _GRACE) -> Iterator[Callable[[], None]]:
    """Run servers while the block lasts, each the leader of its own process group.

    Yields
    ------
    A function that raises ServiceFailedError when one of them has ended.

    Raises
    ------
    UserError
        When a command is not installed.
    """
    started: dict[str, subprocess.Popen[bytes]] = {}

    def check() -> None:
        for service in services:
            if (code := started[service.name].poll()) is not None:
                raise ServiceFailedError(service, f"ended with exit code {code}")

    try:
        for service in services:
            started[service.name] = _start(service)
        yield check
    finally:
        for process in started.values():
            _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        # the runs that a server started are in its group, and may take longer than it
        while time.monotonic() < deadline and any(map(_is_left, started.values())):
            time.sleep(0.1)
        for process in started.values():
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()


def wait_healthy(
    service: Service, check: Callable[[], None], stopping: Callable[[], bool], timeout: float
) -> bool:
    """Wait until a server answers; False when the user wanted to stop meanwhile.

    Raises
    ------
    ServiceFailedError
        When one of the servers ended, or this one did not answer within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not stopping():
        check()
        if answers(service.address):
            return True
        if time.monotonic() > deadline:
            raise ServiceFailedError(service, f"did not answer within {timeout:.0f} s")
        time.sleep(0.3)
    return False


def _start(service: Service) -> subprocess.Popen[bytes]:
    service.log.parent.mkdir(parents=True, exist_ok=True)
    if service.log.exists():
        service.log.replace(service.log.with_name(service.log.name + ".1"))
    with service.log.open("wb") as log:
        try:
            return subprocess.Popen(
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


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; False when nobody is in it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _is_left(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a leader that ended counts until it is waited for
    return _signal_group(process.pid, 0)


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
