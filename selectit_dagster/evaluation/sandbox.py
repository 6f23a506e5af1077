"""Run a generated program where it can do no harm, and say whether it ended well.

Each program gets a fresh interpreter that confines itself (``sandbox_child.py`` has the
layers), an empty environment, a temporary folder of its own and a few seconds. Its whole
process tree dies with it. What it is judged by is kept from it (``sandbox_runner.py``). A program
is not prevented from cheating the test that it is given, for instance by answering with an
object that says it equals everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selectit_dagster.errors import UserError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_START_SECONDS = 60.0
_MOST_OUTPUT = 1 << 16
_ELSEWHERE = "evaluate on another machine, with Linux, or leave task: humaneval out"
LAYERS = ("namespaces", "rlimits", "landlock", "seccomp")
# by their names in the module ``resource``: address space and a file's size in bytes, threads
_LIMITS = {"AS": 1 << 30, "FSIZE": 1 << 20, "NOFILE": 32, "NPROC": 16, "CORE": 0}
SECONDS = 3.0


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed, why not, and the layers that confined it."""

    passed: bool
    reason: str
    layers: tuple[str, ...]
    missing: tuple[str, ...] = ()


def run_program(program: str, seconds: float = SECONDS, *, anyway: bool = False) -> Verdict:
    """Run Python source, which passes when it comes to its end without an exception.

    ``seconds`` bounds wall-clock time, and CPU time rounded up; ``anyway`` runs it with the
    layers that there are, when some are missing.
    """
    nonce = secrets.token_hex(16)
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory(prefix="selectit-program-") as folder:
        job = {
            "program": program,
            "nonce": nonce,
            "folder": folder,
            "limits": {"CPU": int(seconds) + 1, **_LIMITS},
            "readable": _readable(),
            "anyway": anyway,
            "python": _python(),
            "runner": _RUNNER.read_text(encoding="utf-8"),
        }
        try:
            process = _start(writer, folder)
        finally:
            os.close(writer)
        try:
            lines = _converse(process, reader, json.dumps(job).encode(), seconds)
        finally:
            os.close(reader)
            _kill(process)
    return _verdict(lines, nonce)


def run_programs(programs: Sequence[str], *, anyway: bool = False) -> list[Verdict]:
    """Run many programs, one per processor at a time."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(partial(run_program, anyway=anyway), programs))


def require_sandbox(*, anyway: bool) -> Verdict:
    """Run an empty program to see which layers this machine has.

    Raises
    ------
    UserError
        When a layer is missing and ``anyway`` is not set, or programs do not run at all.
    """
    if not sys.platform.startswith("linux"):
        if anyway:
            raise UserError("generated programs run on Linux only", hint=_ELSEWHERE)
        verdict = Verdict(False, "", (), LAYERS)
    else:
        verdict = run_program("pass", 20.0, anyway=anyway)
    if verdict.missing and not anyway:
        raise UserError(
            f"generated programs would not be confined here: no {'; no '.join(verdict.missing)}",
            hint="run on Linux 5.13 or later with user namespaces and Landlock, or accept the "
            "risk with allow_unsandboxed_code: true",
        )
    if not verdict.passed:
        raise UserError(
            f"generated programs do not run here: an empty one {verdict.reason}", hint=_ELSEWHERE
        )
    return verdict


def _start(writer: int, folder: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD), str(writer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(writer,),
        env={},
        cwd=folder,
        start_new_session=True,
    )


def _converse(
    process: subprocess.Popen[bytes], reader: int, job: bytes, seconds: float
) -> list[bytes]:
    """Hand over the job and return the lines that come back in time.

    The program's time begins when its layers are reported, so that a busy machine's slow
    start is not the program's fault.
    """
    assert process.stdin is not None  # noqa: S101 - it was asked for
    with contextlib.suppress(BrokenPipeError), process.stdin as handle:
        handle.write(job)
    received, deadline, started = b"", time.monotonic() + _START_SECONDS, False
    while len(received) < _MOST_OUTPUT:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            received += b"\ntimed out\n"
            break
        chunk = os.read(reader, 4096)
        if not chunk:
            break
        received += chunk
        if not started and b"\n" in received:
            started, deadline = True, time.monotonic() + seconds
    return received.split(b"\n")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole tree: the group, and with its first process the namespace."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _verdict(lines: list[bytes], nonce: str) -> Verdict:
    try:
        report = json.loads(lines[0])
        layers, missing = tuple(report["layers"]), tuple(report["missing"])
    except (ValueError, KeyError, TypeError):
        return Verdict(False, "did not start", (), LAYERS)
    rest = [line.decode("utf-8", "replace") for line in lines[1:] if line]
    if f"passed {nonce}" in rest:
        return Verdict(True, "passed", layers, missing)
    if "timed out" in rest:
        return Verdict(False, "timed out", layers, missing)
    failed = next((line.removeprefix("failed ") for line in rest if line.startswith("failed")), "")
    return Verdict(False, f"raised {failed}" if failed else "died", layers, missing)


def _readable() -> list[str]:
    """Return what an interpreter needs to read: its library, the system's, three devices."""
    paths = sysconfig.get_paths(scheme="posix_prefix", vars={
        "base": sys.base_prefix, "platbase": sys.base_exec_prefix,
        "installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix,
    })  # fmt: skip
    library = {paths["stdlib"], paths["platstdlib"], sysconfig.get_config_var("LIBDIR") or ""}
    system = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime"}
    devices = {"/dev/null", "/dev/zero", "/dev/urandom"}
    shared = {"/usr/share/zoneinfo", _python()}
    return sorted({p for p in library | system | devices | shared if p and Path(p).exists()})


def _python() -> str:
    """Return the interpreter itself: not a virtual environment's link to it."""
    return str(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
