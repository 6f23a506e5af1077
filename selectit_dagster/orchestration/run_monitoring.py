"""Who still works on a Dagster run, so that a dead worker is noticed and its run retried.

Dagster's own launcher starts a run inside the code server and cannot tell afterwards whether
its process still lives: with the code server gone, the run would stay "started" for ever and
keep its pool slots. Here the run's process and each of its steps hold a shared lock on one
file in the home. The lock is the kernel's (``flock``), so it vanishes with its holder, however that
died, and it is seen from every container that has the home mounted.

A run counts as dead only when nobody holds its lock any more. A step that outlives the run's
process ends itself soon, and until then never meets its own retry in one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# files of runs that were killed are removed after this time, when nobody holds them
_KEPT_SECONDS = 3600.0
# between "started" in the database and the lock lies the building of the execution plan
START_SECONDS = 120.0
_FOLDER = Path("dagster") / "workers"
# runs of this process whose stages that load a model have a process of their own
_ISOLATING: set[str] = set()


@contextlib.contextmanager
def working(home: Path, run_id: str) -> Iterator[None]:
    """Be known as a worker of run ``run_id`` while the block lasts.

    Parameters
    ----------
    home:
        Root of the home.
    run_id:
        The Dagster run.
    """
    path = _lock_file(home, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def isolating(run_id: str) -> Iterator[None]:
    """Have the stages of a run that load a model made in processes of their own."""
    _ISOLATING.add(run_id)
    try:
        yield
    finally:
        _ISOLATING.discard(run_id)


def isolates(run_id: str) -> bool:
    """Tell whether the stages of a run that load a model have processes of their own."""
    return run_id in _ISOLATING


@contextlib.contextmanager
def helping(home: Path, run_id: str) -> Iterator[None]:
    """Be known as one more worker of a run whose process is known; nothing otherwise."""
    try:
        descriptor = os.open(_lock_file(home, run_id), os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def has_workers(home: Path, run_id: str) -> bool | None:
    """Tell whether a process works on the run; None when none ever said so.

    The home may be mounted read-only.
    """
    try:
        descriptor = os.open(_lock_file(home, run_id), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_alive(home: Path, run_id: str, started: float | None, now: float | None = None) -> bool:
    """Tell whether a run that is "started" in the database is still worked on.

    Parameters
    ----------
    started:
        When it started, in seconds since 1970; None when that is not known.
    now:
        The present, for tests.
    """
    found = has_workers(home, run_id)
    if found is not None:
        return found
    if started is None:
        return True
    return (time.time() if now is None else now) - started < START_SECONDS


def forget(home: Path, run_id: str) -> None:
    """Remove the file of a run that ended, unless somebody still works on it."""
    if has_workers(home, run_id) is False:
        _lock_file(home, run_id).unlink(missing_ok=True)


def forget_old(home: Path) -> None:
    """Remove the files of runs that were killed a good while ago.

    A young file may be about to be locked and is left alone. Without its file, a run that
    started long ago counts as dead all the same.
    """
    for path in (home / _FOLDER).glob("*.lock"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                forget(home, path.stem)


def _lock_file(home: Path, run_id: str) -> Path:
    return home / _FOLDER / f"{run_id}.lock"


@contextlib.contextmanager
def ended_with_parent(interval: float = 1.0) -> Iterator[None]:
    """End this process soon after the one that started it, where it is a step's own process.

    A killed run worker leaves its steps running: they would keep a model in memory while the
    pool's slot, which run monitoring frees, lets another one in.
    """
    if multiprocessing.parent_process() is None:
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch_parent, args=(over, interval), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()


def _watch_parent(over: threading.Event, interval: float) -> None:
    parent = multiprocessing.parent_process()
    while not over.wait(interval):
        if parent is not None and not parent.is_alive():
            os.kill(os.getpid(), signal.SIGTERM)
            over.wait(10)
            os.kill(os.getpid(), signal.SIGKILL)
