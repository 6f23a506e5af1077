"""Runs whose processes died are noticed, those that are worked on are left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import dagster as dg
import pytest
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.launcher.base import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from small_home import Interrupting

from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.errors import UserError
from selectit_dagster.local_servers import free_port
from selectit_dagster.orchestration import run_monitoring
from selectit_dagster.orchestration.asset_keys import experiments_of
from selectit_dagster.orchestration.run_coordinator import check_values
from selectit_dagster.orchestration.run_launcher import WatchedExecutor, WatchedRunLauncher
from selectit_dagster.progress import Reporter

RUN = "0b0e6c3e-run"
_WORKER = (
    "import sys, time; from pathlib import Path\n"
    "from selectit_dagster.orchestration import run_monitoring\n"
    "with run_monitoring.working(Path(sys.argv[1]), sys.argv[2]):\n"
    "    print('at work', flush=True); time.sleep(600)"
)


@pytest.fixture
def start(tmp_path):
    processes = []

    def begin():
        argv = [sys.executable, "-c", _WORKER, str(tmp_path), RUN]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline().strip() == b"at work"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def _kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_run_is_alive_until_its_process_is_killed(tmp_path, start):
    process = start()
    assert run_monitoring.is_alive(tmp_path, RUN, started=0.0)
    _kill(process)
    # its file is still there, so nobody waits for it to say that it has begun
    assert not run_monitoring.is_alive(tmp_path, RUN, started=time.time())


def test_a_run_that_has_just_started_may_take_a_while_to_say_so(tmp_path):
    assert run_monitoring.is_alive(
        tmp_path, RUN, started=1000.0, now=1000.0 + run_monitoring.START_SECONDS - 1
    )
    assert not run_monitoring.is_alive(
        tmp_path, RUN, started=1000.0, now=1001.0 + run_monitoring.START_SECONDS
    )
    assert run_monitoring.is_alive(tmp_path, RUN, started=None)


def test_a_read_only_view_of_the_home_suffices_to_ask(tmp_path, start):
    start()
    lock = next(tmp_path.rglob("*.lock"))
    lock.chmod(0o444)
    lock.parent.chmod(0o555)
    try:
        assert run_monitoring.is_alive(tmp_path, RUN, started=0.0)
    finally:
        lock.parent.chmod(0o755)


@dg.job
def _some_job():
    """Nothing."""


def _inner(monkeypatch, execute):
    """Have Dagster's own executor do something else."""
    monkeypatch.setattr(InProcessExecutor, "execute", lambda self, context, plan: execute())


def test_the_process_of_a_run_is_known_while_it_lasts_and_forgotten_after(tmp_path, monkeypatch):
    seen = []

    def execute():
        seen.append(run_monitoring.is_alive(tmp_path, RUN, started=0.0))
        yield "event"

    class Plan:
        instance = None
        dagster_run = dg.DagsterRun("job", RUN)

    _inner(monkeypatch, execute)
    assert list(WatchedExecutor(tmp_path, {}).execute(Plan(), None)) == ["event"]
    assert seen == [True]
    assert not run_monitoring.is_alive(tmp_path, RUN, started=0.0)
    assert not list(tmp_path.rglob("*.lock"))


@pytest.fixture
def interruptible():
    """Ctrl-C raises: in a shell's background job it is ignored."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_comes_again_at_the_next_report_or_at_the_end(interruptible):
    seen = []
    with (
        pytest.raises(KeyboardInterrupt),
        run_monitoring.dropped_interrupts_again() as check_interrupts,
    ):
        reporter = Reporter("stage", check_interrupts=check_interrupts)
        reporter.update(1, 3)
        Interrupting()
        seen.append("the stage went on")
        reporter.update(2, 3)
        seen.append("and on")
    with pytest.raises(KeyboardInterrupt), run_monitoring.dropped_interrupts_again():
        Interrupting()
        seen.append("no report came")
    with run_monitoring.dropped_interrupts_again() as check_interrupts:
        check_interrupts()
        seen.append("nothing came")
    assert seen == ["the stage went on", "no report came", "nothing came"]


def test_an_interrupt_that_somebody_takes_note_of_is_not_sent_for_ever():
    noted = []
    before = signal.signal(signal.SIGINT, lambda *_: noted.append("once"))
    try:
        with run_monitoring.dropped_interrupts_again() as check_interrupts:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(5):
                check_interrupts()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(noted) == 2


def test_the_launcher_tells_monitoring_about_a_dead_run(tmp_path, start):
    with dg.DagsterInstance.ephemeral() as instance:
        launcher = WatchedRunLauncher(home=str(tmp_path))
        launcher.register_instance(instance)
        run = instance.create_run_for_job(_some_job)
        path = tmp_path / "dagster" / "workers" / f"{run.run_id}.lock"
        assert launcher.supports_check_run_worker_health
        with run_monitoring.working(tmp_path, run.run_id):
            assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
        path.touch()  # as a killed process leaves it
        assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


def test_a_dead_run_is_not_given_up_while_the_server_that_starts_it_again_is_away(
    tmp_path, monkeypatch
):
    with dg.DagsterInstance.ephemeral() as instance:
        launcher = WatchedRunLauncher(home=str(tmp_path))
        launcher.register_instance(instance)
        place = json.dumps({"host": "127.0.0.1", "port": free_port(0)})
        run = instance.create_run_for_job(_some_job, tags={GRPC_INFO_TAG: place})
        path = run_monitoring.lock_file(tmp_path, run.run_id)
        path.parent.mkdir(parents=True)
        path.touch()
        assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
        monkeypatch.setattr("selectit_dagster.orchestration.run_launcher._AWAY_SECONDS", 0.0)
        assert launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


def test_the_code_location_of_the_project_watches_its_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SELECTIT_HOME", str(tmp_path))
    from selectit_dagster.definitions import defs

    job = defs().resolve_job_def("miniature_reselect")
    assert job.executor_def.name == "watched_executor"


class _Told:
    """An instance that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def report_engine_event(self, text, run) -> None:
        self.events.append(text)


def test_a_run_waits_for_the_command_on_the_same_experiment_and_says_so(tmp_path, monkeypatch):
    folder, instance = tmp_path / "experiments" / "weekly", _Told()
    held = folder_lock(folder, "selectit run")
    held.__enter__()

    def give_way(seconds):
        held.__exit__(None, None, None)

    monkeypatch.setattr("selectit_dagster.orchestration.run_launcher.time.sleep", give_way)

    def execute():
        with pytest.raises(UserError, match=r"in use by Dagster run 0b0e6c3e"):
            folder_lock(folder, "selectit run").__enter__()
        yield "event"

    class Plan:
        dagster_run = dg.DagsterRun("job", RUN, tags={"selectit/experiment": "weekly"})

    Plan.instance = instance
    _inner(monkeypatch, execute)
    executor = WatchedExecutor(tmp_path, {"weekly": folder, "monthly": tmp_path})
    assert list(executor.execute(Plan(), None)) == ["event"]
    assert [text.partition(" (")[0] for text in instance.events] == [
        f"Waiting: {folder} is in use by selectit run"
    ]


def test_the_queue_knows_the_experiment_of_what_a_page_materialises():
    keys = {
        dg.AssetKey(["weekly", "uncertainty_scores", "one"]),
        dg.AssetKey(["weekly", "ranking"]),
    }
    assert experiments_of(dg.DagsterRun("__ASSET_JOB", RUN, asset_selection=keys)) == ["weekly"]
    two = {*keys, dg.AssetKey(["team", "a", "report"])}
    found = experiments_of(dg.DagsterRun("__ASSET_JOB", RUN, asset_selection=two))
    assert found == ["team/a", "weekly"]


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", 101), ("share", 0), ("count", 0), ("seed", -1)]
)
def test_numbers_out_of_their_range_are_refused_when_a_run_is_asked_for(name, value):
    config = {"ops": {"weekly__ranking": {"config": {name: value, "variant": "paper"}}}}
    with pytest.raises(UserError, match=f"weekly/ranking: {name} {value} is out of its range"):
        check_values(config)
    check_values({"ops": {"weekly__ranking": {"config": {name: 1}}, "other": None}})
    check_values({})
