"""A server that lives as long as a stage: started, waited for, its log kept, ended for certain.

The server runs under a guard (``server_guard.py``), which ends it with the stage, and also when
the stage's process is killed outright.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from selectit_dagster.artefacts.files import write_bytes
from selectit_dagster.errors import UserError, redacted
from selectit_dagster.experiment.server_section import ServerSection
from selectit_dagster.inference.backends.server_client import api_key

_HOST = "127.0.0.1"
_GUARD = Path(__file__).with_name("server_guard.py")
_POLL_SECONDS = 0.25
_TAIL_LINES, _TAIL_BYTES = 12, 16_384


@contextlib.contextmanager
def launched(section: ServerSection, model: str, health: str, log: Path) -> Iterator[str]:
    """Start the section's command and yield the server's address once it is healthy.

    Parameters
    ----------
    section:
        With ``launch``; ``{port}`` and ``{model}`` are filled in.
    model:
        Path or hub name of the model.
    health:
        The path that answers 200 once the server is ready.
    log:
        File that takes what the server says; it stays.

    Raises
    ------
    UserError
        When the command is not there, ends by itself or is not ready in time.
    """
    port = _free_port()
    filled = {"{port}": str(port), "{model}": model}
    argv = [_filled(part, filled) for part in section.launch or ()]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        guard = subprocess.Popen(
            [sys.executable, "-I", str(_GUARD), *argv],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(guard, port, health, section.start_seconds, argv, log)
        yield f"http://{_HOST}:{port}"
    finally:
        if guard.stdin is not None:
            guard.stdin.close()
        guard.wait()
        _without(api_key(section.api_key_env), log)


def _without(key: str | None, log: Path) -> None:
    """Take the key out of the log, if the server wrote it there."""
    if key and key.encode() in (content := log.read_bytes()):
        write_bytes(log, content.replace(key.encode(), b"***"))


def _filled(part: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        part = part.replace(name, value)
    return part


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _wait(
    guard: subprocess.Popen[bytes],
    port: int,
    health: str,
    seconds: float,
    argv: list[str],
    log: Path,
) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        code = guard.poll()
        if code is not None:
            raise UserError(
                f"the server ended with exit code {code} before it was ready: {argv[0]}\n"
                f"{_tail(log)}",
                hint=f"its whole log is {log}; correct server.launch",
            )
        if _is_healthy(port, health):
            return
        time.sleep(_POLL_SECONDS)
    raise UserError(
        f"the server was not ready after {seconds:.0f} s: {argv[0]}\n{_tail(log)}",
        hint=f"its whole log is {log}; raise server.start_seconds if it only needs longer",
    )


def _is_healthy(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path) -> str:
    lines = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace").splitlines()
    return redacted("\n".join(f"  {line[:300]}" for line in lines[-_TAIL_LINES:]))
