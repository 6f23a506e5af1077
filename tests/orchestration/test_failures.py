"""Failures: what is tried again, what is not, what is closed, and what a person is told."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.server
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import dagster as dg
import psutil
import pytest
from pydantic import Field
from small_home import Interrupting, make_pipeline, write_experiment

from selectit_dagster.artefacts.manifest import write_manifest
from selectit_dagster.errors import PassingError, TransientError, UserError
from selectit_dagster.launch.run import StageFailedError, run_experiment
from selectit_dagster.orchestration import run_cleanup, run_monitoring, stage_asset
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.instance import DAGSTER_YAML, open_instance
from selectit_dagster.orchestration.prune import old_runs
from selectit_dagster.orchestration.resources import make_tracker
from selectit_dagster.orchestration.stages.stage import Stage


class World:
    """A stage that fails as it is told, in an instance and with a tracker of its own."""

    def __init__(self, folder, instance) -> None:
        self.line = make_pipeline(folder, tuning=False)
        self.tracker = make_tracker(self.line)
        self.instance, self.folder, self.attempts = instance, folder / "stage", 0

    def materialise(self, *errors: Exception, run=None) -> dg.ExecuteInProcessResult:
        """Run the stage; each attempt raises the next of ``errors``, then it succeeds."""
        left = list(errors)

        def make(progress):
            self.attempts += 1
            if left:
                raise left.pop(0)
            return write_manifest(self.folder, kind="x", fingerprint={}, files=[], counts={"n": 1})

        stage = Stage("stage", self.folder, dict, run or make, "records")

        class Told(stage_asset.StageAsset):
            def stage(self, asked):
                return stage

        told = Told(self.line, Access.of(self.line.experiment))

        @dg.asset(name="stage")
        def asset(context) -> dg.MaterializeResult:
            return told.run(context, self.line, self.tracker)

        job = dg.Definitions(assets=[asset]).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(instance=self.instance, raise_on_error=False)

    def mlflow(self, run_id: str) -> dict[str, str]:
        """Status of each MLflow run of a Dagster run, by level and attempt."""
        found = self.tracker.client.search_runs(
            [self.tracker.experiment_id], f"tags.`dagster.run_id` = '{run_id}'"
        )
        return {
            r.data.tags["selectit.level"] + r.data.tags.get("dagster.attempt", ""): r.info.status
            for r in found
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An MLflow database with its tables: making them takes longer than a test."""
    tracker = make_tracker(make_pipeline(tmp_path_factory.mktemp("store"), tuning=False))
    _ = tracker.client
    return tracker.folder / "mlflow.db"


@pytest.fixture
def world(tmp_path, monkeypatch, store):
    monkeypatch.setattr(stage_asset, "_RETRY_SECONDS", 0)
    (tmp_path / "stage").mkdir()
    (tmp_path / "home" / "mlflow").mkdir(parents=True)
    shutil.copy(store, tmp_path / "home" / "mlflow")
    with open_instance(tmp_path / "home" / "dagster") as instance:
        yield World(tmp_path, instance)


def test_what_is_transient_is_tried_again(world):
    result = world.materialise(TransientError("the hub is busy"), ConnectionError("reset"))
    assert result.success
    assert world.attempts == 3
    states = world.mlflow(result.run_id)
    assert [states[f"asset{n}"] for n in (1, 2, 3)] == ["FAILED", "FAILED", "FINISHED"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_dropped_ends_the_stage_at_its_next_report(world):
    went_on = []

    def run(progress):
        Interrupting()
        progress.update(1, 2)
        went_on.append("after its report")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert not world.materialise(run=run).success
    finally:
        signal.signal(signal.SIGINT, before)
    assert went_on == []


def test_a_source_that_changed_while_it_was_read_is_read_again(world):
    assert world.materialise(PassingError("a.json was changed", hint="run again")).success
    assert world.attempts == 2


def test_what_stays_broken_is_given_up_after_three_retries(world):
    assert not world.materialise(*[TimeoutError("no answer")] * 9).success
    assert world.attempts == 4


@pytest.mark.parametrize("error", [UserError("no such file", hint="check it"), ValueError("bug")])
def test_what_is_permanent_is_tried_once(world, error):
    assert not world.materialise(error).success
    assert world.attempts == 1


def test_a_failed_run_is_closed_and_says_what_to_do_next(world):
    result = world.materialise(UserError("no such file", hint="check dataset.path"))
    run = world.instance.get_run_by_id(result.run_id)
    run_cleanup.close_run(world.instance, run, world.tracker)
    assert set(world.mlflow(run.run_id).values()) == {"FAILED"}
    run = world.instance.get_run_by_id(run.run_id)
    told = run.tags[run_cleanup.REMEDY_TAG]
    assert "stage: no such file. Remedy: check dataset.path." in told
    assert "Re-execute from failure" in told
    events = world.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    assert sum("What to do next" in (e.message or "") for e in events) == 1
    parent = world.tracker.client.get_run(run.tags["mlflow/run_id"])
    assert "check dataset.path" in parent.data.tags["mlflow.note.content"]
    assert f"/runs/{run.run_id}" in parent.data.tags["mlflow.note.content"]
    run_cleanup.close_run(world.instance, run, world.tracker)  # a second sensor comes by
    events = world.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    assert sum("What to do next" in (e.message or "") for e in events) == 1


def test_a_failed_run_is_told_to_the_webhook_and_one_that_is_away_harms_nothing(world, monkeypatch):
    told: list[dict] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setenv("SELECTIT_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook")
    for _ in range(2):  # the second time nobody answers
        run = world.instance.get_run_by_id(world.materialise(UserError("no such file")).run_id)
        run_cleanup.close_run(world.instance, run, world.tracker)
        server.server_close()
    (first,) = told
    assert "no such file" in first["text"]
    assert first["url"].endswith(f"/runs/{first['run']}")


def test_old_runs_go_and_those_that_made_what_is_newest_stay(world):
    first, second = (world.materialise().run_id for _ in range(2))
    failed = world.materialise(UserError("no such file")).run_id
    now = dt.datetime.now(dt.UTC)
    assert old_runs(world.instance, now - dt.timedelta(days=1)) == []
    old = old_runs(world.instance, now + dt.timedelta(seconds=1))
    assert {run.run_id for run in old} == {first, failed}
    for run in old:
        world.instance.delete_run(run.run_id)
    assert [run.run_id for run in world.instance.get_runs()] == [second]
    assert world.instance.get_latest_materialization_event(dg.AssetKey("stage")) is not None


def test_a_run_of_other_assets_in_the_same_project_is_left_alone(world):
    @dg.asset
    def other() -> None:
        raise ValueError

    job = dg.Definitions(assets=[other]).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=world.instance, raise_on_error=False)
    run = world.instance.get_run_by_id(result.run_id)
    assert run_cleanup.close_run(world.instance, run, world.tracker) == 0
    assert run_cleanup.REMEDY_TAG not in world.instance.get_run_by_id(run.run_id).tags


class Bounded(dg.Config):
    """Config with a bound."""

    share: float = Field(0.2, le=1.0)


def test_a_run_that_wrong_config_ended_before_its_work_says_what_to_do_too(world):
    def subset(config) -> None: ...

    subset.__annotations__["config"] = Bounded  # Dagster reads no annotation that is a string
    job = dg.Definitions(assets=[dg.asset(subset)]).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        {"ops": {"subset": {"config": {"share": 9.0}}}},
        instance=world.instance,
        raise_on_error=False,
    )
    run = world.instance.get_run_by_id(result.run_id)
    run_cleanup.close_run(world.instance, run, world.tracker, frozenset({dg.AssetKey("subset")}))
    told = world.instance.get_run_by_id(run.run_id).tags[run_cleanup.REMEDY_TAG]
    assert "less than or equal to 1" in told


@dg.op
def _nothing() -> None: ...


@dg.job
def _killed() -> None:
    _nothing()


def _abandon(world) -> dg.DagsterRun:
    """Leave a run as a killed process does: STARTED, its MLflow runs RUNNING."""
    instance = world.instance
    run = instance.create_run_for_job(_killed, tags={"selectit/launch": "x"})
    left = run_monitoring.lock_file(world.tracker.home, run.run_id)
    left.parent.mkdir(exist_ok=True)
    left.touch()  # the lock goes with its holder, its file stays
    start = dg.DagsterEvent(event_type_value="PIPELINE_START", job_name=run.job_name)
    instance.report_dagster_event(start, run.run_id)
    world.tracker.parent(run.run_id, "killed", {})
    return instance.get_run_by_id(run.run_id)


def test_a_run_whose_process_is_gone_is_closed_by_the_next_start(world):
    dead, alive = _abandon(world), _abandon(world)
    with run_monitoring.working(world.tracker.home, alive.run_id):
        assert run_cleanup.fail_abandoned(world.instance, world.tracker) == [dead.run_id]
    after = world.instance.get_run_by_id(dead.run_id)
    assert after.status is dg.DagsterRunStatus.FAILURE
    assert "it was killed, or the machine ran out of memory" in after.tags[run_cleanup.REMEDY_TAG]
    assert world.mlflow(dead.run_id) == {"parent": "FAILED"}
    assert world.mlflow(alive.run_id) == {"parent": "RUNNING"}
    assert not run_monitoring.lock_file(world.tracker.home, dead.run_id).exists()


def test_a_run_at_whose_end_mlflow_was_away_is_closed_after_the_next_one(world):
    missed, last = (world.materialise().run_id for _ in range(2))
    going_on = _abandon(world)
    access = SimpleNamespace(name=str, experiment=None)
    place = SimpleNamespace(open=lambda: (world.line, world.tracker))
    sensor = run_cleanup.closing_sensors(access, place, frozenset())[0]
    run = world.instance.get_run_by_id(last)
    (event,) = world.instance.all_logs(last, of_type=dg.DagsterEventType.RUN_SUCCESS)
    sensor(
        dg.build_run_status_sensor_context(
            sensor.name, event.get_dagster_event(), world.instance, run
        )
    )
    for run_id in (missed, last):
        assert world.mlflow(run_id) == {"parent": "FINISHED", "asset1": "FINISHED"}
    assert world.mlflow(going_on.run_id) == {"parent": "RUNNING"}


def test_a_dead_run_of_another_experiment_is_left_to_that_one(world):
    dead = _abandon(world)
    world.instance.add_run_tags(dead.run_id, {"selectit/experiment": "another"})
    assert run_cleanup.fail_abandoned(world.instance, world.tracker, "small") == []
    assert run_cleanup.fail_abandoned(world.instance, world.tracker, "another") == [dead.run_id]


def test_run_monitoring_asks_the_launcher_which_knows(world):
    launcher = world.instance.run_launcher
    assert launcher.supports_check_run_worker_health
    run = _abandon(world)
    assert launcher.check_run_worker_health(run).status.value == "FAILED"
    with run_monitoring.working(world.tracker.home, run.run_id):
        assert launcher.check_run_worker_health(run).status.value == "RUNNING"


def test_the_instance_watches_its_workers_and_lets_one_model_in():
    import yaml

    settings = yaml.safe_load(DAGSTER_YAML)
    assert settings["concurrency"]["pools"] == {"default_limit": 1, "granularity": "op"}
    assert settings["run_monitoring"]["enabled"]
    assert settings["run_launcher"]["class"] == "WatchedRunLauncher"


def _wait_as_a_step(started: str) -> None:
    run_monitoring.end_with_parent()
    with open(started, "w", encoding="utf-8") as handle:  # noqa: PTH123
        handle.write(str(os.getpid()))
    time.sleep(600)


_PARENT = """
import multiprocessing, sys, time
sys.path.insert(0, sys.argv[1])
from test_failures import _wait_as_a_step
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    context.Process(target=_wait_as_a_step, args=(sys.argv[2],)).start()
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_step_ends_with_its_killed_run_worker(tmp_path):
    noted = tmp_path / "pid"
    folder = os.path.dirname(__file__)  # noqa: PTH120
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, folder, str(noted)])
    deadline = time.monotonic() + 60
    while not (noted.exists() and noted.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    step = psutil.Process(int(noted.read_text()))
    parent.kill()
    parent.wait()
    step.wait(timeout=20)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("no_such_key: 1", 'unexpected config entry "no_such_key"'),
        ("{", "expected the node content"),
    ],
)
def test_settings_of_the_instance_that_dagster_refuses_are_one_line(tmp_path, settings, said):
    (tmp_path / "dagster.yaml").write_text(settings, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be opened: ") as caught, open_instance(tmp_path):
        pass
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < len(str(tmp_path)) + 400
    assert str(tmp_path / "dagster.yaml") in caught.value.hint


def test_a_hub_that_stays_away_while_it_is_read_ends_the_run_with_what_to_do(tmp_path, monkeypatch):
    path = write_experiment(tmp_path, tuning=False)
    text = path.read_text("utf-8").replace("records.jsonl", "someone/data")
    path.write_text(f"{text}tracking: {{enabled: false}}\n", "utf-8")
    for name in ("little", "big"):
        (tmp_path / name).mkdir()
    asked = []

    def away(*arguments, **more):
        asked.append(arguments)
        raise ConnectionError("no route to the hub")

    info = SimpleNamespace(sha="c0ffee" * 6)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name, **more: info)
    monkeypatch.setattr("datasets.load_dataset", away)
    monkeypatch.setattr(stage_asset, "_RETRY_SECONDS", 0)
    with pytest.raises(StageFailedError, match="raw_dataset failed: ") as caught:
        run_experiment(path, tmp_path / "home", upto="raw_dataset")
    assert len(asked) == 4
    assert "'someone/data' cannot be fetched: no route to the hub" in caught.value.message
    assert "go on where it stopped" in caught.value.hint
    assert not caught.value.permanent


@pytest.mark.slow
def test_a_database_that_is_locked_for_good_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "home" / "dagster"
    (folder / "history").mkdir(parents=True)
    monkeypatch.setattr("selectit_dagster.orchestration.instance._LOCKED_SECONDS", 0.0)
    with contextlib.closing(sqlite3.connect(folder / "history" / "runs.db")) as store:
        store.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(UserError, match="another program has held a database in"),
            open_instance(folder),
        ):
            pass
