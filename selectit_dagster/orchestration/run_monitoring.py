"""Whether a process still works on a Dagster run: the lock that it holds on a file in the home.

Dagster's own launcher starts a run inside the code server, which marks it as failed when the run's
process dies. With the code server gone as well the run would stay "started" for ever and keep its
pool slots. The lock is the kernel's (``flock``): it vanishes with its holder, however that died,
and is seen from every container that has the home mounted.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# between "started" in the database and the lock lies the building of the execution plan
START_SECONDS = 120.0
_END_SECONDS = 10.0


def lock_file(home: Path, run_id: str) -> Path:
    """Return the file that a run's process holds; that of a killed one stays, unlocked."""
    return home / "dagster" / "workers" / f"{run_id}.lock"


@contextlib.contextmanager
def working(home: Path, run_id: str) -> Iterator[None]:
    """Be known as the process of a run while the block lasts."""
    path = lock_file(home, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_alive(home: Path, run_id: str, started: float | None, now: float | None = None) -> bool:
    """Tell whether a run that is "started" in the database is still worked on.

    The home may be mounted read-only.

    Parameters
    ----------
    started:
        When it started, in seconds since 1970; None when that is not known.
    now:
        The present, for tests.
    """
    try:
        with lock_file(home, run_id).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        now = time.time() if now is None else now
        return started is None or now - started < START_SECONDS


@functools.cache
def end_with_parent() -> None:
    """End this process soon after the one that started it, where that is a step's or a run's.

    A killed run leaves the steps of Dagster's multiprocess executor running: they would keep a
    model in memory while the pool's slot, which run monitoring frees, lets another one in.
    """
    if (parent := multiprocessing.parent_process()) is None:
        return

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_END_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def dropped_interrupts_again() -> Iterator[Callable[[], None]]:
    """Yield what sends an interrupt again that came in this block and that nobody saw.

    It is for every report of progress, and is called at the block's end. Dagster's handler raises
    wherever the program is, and Python drops what is raised inside a finaliser or the callback of
    a weak reference, of which there are thousands when a model is let go. The interpreter notes
    the signal all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # signals go to the main thread alone
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def again() -> None:
        with contextlib.suppress(BlockingIOError):
            came = os.read(reader, 1024)
            for number in {signal.SIGINT, signal.SIGTERM} & set(came):
                signal.raise_signal(number)
            os.read(reader, 1024)  # a handler that only took note: once is enough

    try:
        yield again
        again()
    finally:
        signal.set_wakeup_fd(former)
        os.close(reader)
        os.close(writer)
