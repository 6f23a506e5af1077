"""Servers on this machine: started and ended together; free ports, and those that a home chose.

Links are written into Dagster and MLflow while a run goes on, often before anybody serves the
pages. So a home chooses its ports once, when it is first asked, and ``selectit ui`` takes the
same ones as long as they are free.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import UserError

LOOPBACK = "127.0.0.1"
_GRACE = 30.0  # between asking a server to end and killing it: Dagster's own asks its children
_PREFERRED = {"dagster": 3000, "mlflow": 5000}


class ServiceFailedError(Exception):
    """A server ended by itself or never answered."""

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
    started: list[tuple[Service, subprocess.Popen[bytes]]] = []

    def check() -> None:
        for service, process in started:
            if (code := process.poll()) is not None:
                raise ServiceFailedError(service, f"ended with exit code {code}")

    try:
        for service in services:
            started.append((service, _start(service)))
        yield check
    finally:
        processes = [process for _, process in started]
        deadline = time.monotonic() + grace
        for process in processes:
            _signal_group(process, signal.SIGTERM)
        # the runs that a server started are in its group, and may take longer than it
        while time.monotonic() < deadline and any(_signal_group(p, 0) for p in processes):
            time.sleep(0.1)
        for process in processes:
            _signal_group(process, signal.SIGKILL)
            process.wait()


def wait_healthy(
    service: Service, check: Callable[[], None], stopping: threading.Event, timeout: float
) -> bool:
    """Wait until a server answers; False when the user wanted to stop meanwhile.

    Raises
    ------
    ServiceFailedError
        When one of the servers ended, or this one did not answer within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not stopping.wait(0.3):
        check()
        if answers(service.address):
            return True
        if time.monotonic() > deadline:
            raise ServiceFailedError(service, f"did not answer within {timeout:.0f} s")
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
    control, death_signal, end = ctypes.CDLL(None).prctl, 1, ctypes.c_ulong(signal.SIGTERM)

    def ask_the_kernel() -> None:
        # whoever started us may have switched the signal off, which children inherit
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        control(death_signal, end)
        if os.getppid() != parent:  # it died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)

    return ask_the_kernel


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the group that a process leads; False when nobody is in it."""
    process.poll()  # a leader that ended counts until it is waited for
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


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
    except (OSError, ValueError):
        return False


def tail(path: Path, lines: int = 20) -> list[str]:
    """Return the last lines of a log, without reading more than 64 KiB of it."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - (1 << 16)))
        text = handle.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]


# --- ports ----------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Ports:
    """The ports of a home's pages."""

    dagster: int
    mlflow: int


def ports(root: Path) -> Ports:
    """Return a home's ports; they are chosen, free ones, and kept, at the first call."""
    file = root / "ports.json"
    with contextlib.suppress(UserError, ValueError, TypeError, KeyError):
        known = read_json(file)
        # in a copy others are chosen: both homes may be served at once
        if known.get("home", str(root)) == str(root):
            return Ports(int(known["dagster"]), int(known["mlflow"]))
    chosen = Ports(**{name: free_port(port) for name, port in _PREFERRED.items()})
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        write_json(file, {**asdict(chosen), "home": str(root)})
    return chosen


def dagster_address(root: Path) -> str:
    """Return Dagster's address: ``$SELECTIT_DAGSTER_UI``, else that of this home."""
    given = os.environ.get("SELECTIT_DAGSTER_UI") or f"http://{LOOPBACK}:{ports(root).dagster}"
    return given.rstrip("/")


def mlflow_address(root: Path) -> str:
    """Return the address of this home's MLflow page."""
    return f"http://{LOOPBACK}:{ports(root).mlflow}"
