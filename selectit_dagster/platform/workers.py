"""Whether the process that works on a Dagster run is still there.

Dagster's default launcher cannot tell: a run whose worker went down together with the code
server (power cut, ``kill -9``) would stay STARTED for ever, and hold its pool's slots and its
place in the queue. Every worker notes its process id in the run's log, which is enough on one
machine.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import psutil
from dagster import DagsterEventType, DagsterInstance, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

PROCESS_TAG = "selectit/process"
# a worker notes itself a moment after it began; clocks of file systems are coarser still
_TOLERANCE = 5.0


def worker_is_gone(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Tell whether the run's worker noted its process id and that process is gone."""
    noted = _worker(instance, run)
    return noted is not None and not _is_alive(*noted)


def _worker(instance: DagsterInstance, run: DagsterRun) -> tuple[int, float] | None:
    """Return process id of the run's worker and when it was noted, None where it was not."""
    stats = instance.get_run_record_by_id(run.run_id)
    if (tag := run.tags.get(PROCESS_TAG)) is not None:
        started = stats.start_time if stats is not None else None
        return int(tag), started or float("inf")
    for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
        event = entry.get_dagster_event()
        pid = event.engine_event_data.metadata.get("pid")
        if event.step_key is None and "Started process for run" in (event.message or "") and pid:
            return int(str(pid.value)), entry.timestamp
    return None


def _is_alive(pid: int, noted_at: float) -> bool:
    """Tell whether a process has this id and is not a later one that was given it again."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.create_time() <= noted_at + _TOLERANCE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


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
    watch = threading.Thread(target=_watch_parent, args=(os.getppid(), over, interval), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()


def _watch_parent(parent: int, over: threading.Event, interval: float) -> None:
    while not over.wait(interval):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            over.wait(10)
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, which can also tell that a run's worker is gone."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring asks :meth:`check_run_worker_health` for every started run."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return FAILED when the worker's process is gone, else RUNNING."""
        if worker_is_gone(self._instance, run):
            return CheckRunHealthResult(WorkerStatus.FAILED, "the worker's process is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
