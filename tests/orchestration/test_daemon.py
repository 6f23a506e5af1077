"""The daemon at work: a file that changes, a killed worker, another α from the launchpad.

Minutes each, most of it waiting for the daemon's ticks. ``SELECTIT_DAEMON_ROUNDS`` repeats the
changing of the file, to watch it for as long as one likes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.instance import open_instance
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import make_tracker
from selectit_dagster.orchestration.run_cleanup import REMEDY_TAG

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WORLD = ROOT / "selectit_dagster" / "miniature"
ROUNDS = int(os.environ.get("SELECTIT_DAEMON_ROUNDS", "1"))
_TICKS = 100.0  # seconds: three ticks of every sensor, with time to start a run
_MAIN = "from selectit_dagster.cli.main import main; main()"
_LOCATION = 'repositoryLocationName: "selectit", repositoryName: "__repository__"'
_PLACE = {"repositoryLocationName": "selectit", "repositoryName": "__repository__"}


@dataclass
class Served:
    """A home with its pages and daemon."""

    path: Path
    line: Pipeline
    process: subprocess.Popen[str]
    dagster: str

    @property
    def data(self) -> Path:
        """The dataset's file."""
        return self.path.with_name("data.jsonl")

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask Dagster's GraphQL, as its page does."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.dagster}/graphql", body, {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            answer = opener.open(request, timeout=120)
        except urllib.error.HTTPError as refused:  # an error of Python's comes with status 500
            answer = refused
        with answer:
            found = json.loads(answer.read())
        assert "errors" not in found, found
        return found["data"]

    def turn_on(self, sensor: str) -> None:
        """Turn a sensor on, as the switch on the page does."""
        selector = f'{{{_LOCATION}, sensorName: "{sensor}"}}'
        query = f"mutation {{startSensor(sensorSelector: {selector}) {{__typename}}}}"
        assert self.ask(query)["startSensor"]["__typename"] == "Sensor"

    def launch(self, asset: str, partition: str | None = None, **config: Any) -> str:
        """Materialise an asset from the launchpad and return the run's id."""
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        parameters = {
            "selector": {
                **_PLACE,
                "pipelineName": "__ASSET_JOB",
                "assetSelection": [{"path": ["watched", *asset.split("/")]}],
            },
            "runConfigData": {"ops": {f"watched__{asset.replace('/', '__')}": {"config": config}}}
            if config
            else {},
            "executionMetadata": {"tags": tags},
        }
        query = """mutation Launch($p: ExecutionParams!) {launchRun(executionParams: $p) {
            __typename ... on LaunchRunSuccess {run {runId}}
            ... on RunConfigValidationInvalid {errors {message}}
            ... on PythonError {message stack}}}"""
        found = self.ask(query, p=parameters)["launchRun"]
        assert found["__typename"] == "LaunchRunSuccess", found
        return found["run"]["runId"]

    def runs(self) -> list[dict[str, Any]]:
        """Every run, newest first: id, status, job, tags."""
        query = """{runsOrError {... on Runs {results {runId status jobName
            assetSelection {path} tags {key value}}}}}"""
        found = self.ask(query)["runsOrError"]["results"]
        return [{**run, "tags": {t["key"]: t["value"] for t in run["tags"]}} for run in found]

    def run(self, run_id: str) -> dict[str, Any]:
        """One run."""
        return next(run for run in self.runs() if run["runId"] == run_id)

    def until(self, condition, seconds: float = 900.0):
        """Wait until ``condition()`` is true and return its value."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "it did not happen in time"
            assert self.process.poll() is None, "the pages ended"
            time.sleep(1)
        return value

    def finished(self, run_id: str) -> str:
        """Wait for a run's end and return its status."""
        ends = ("SUCCESS", "FAILURE", "CANCELED")
        return self.until(lambda: (s := self.run(run_id)["status"]) in ends and s)

    def quiet(self, seconds: float) -> list[dict[str, Any]]:
        """Wait, and return the runs that began meanwhile."""
        before = {run["runId"] for run in self.runs()}
        time.sleep(seconds)
        return [run for run in self.runs() if run["runId"] not in before]


def _write(path: Path, start: int, count: int) -> None:
    """Write ``count`` records of the miniature world from ``start`` on, in one rename."""
    with (WORLD / "data" / "pool.jsonl").open(encoding="utf-8") as handle:
        lines = handle.readlines()[start : start + count]
    staged = path.with_suffix(".new")
    staged.write_text("".join(lines), encoding="utf-8")
    staged.replace(path)


def _experiment(folder: Path, records: int, prompts: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "data.jsonl", 0, records)
    path = folder / "watched.yaml"
    path.write_text(
        f"""
name: watched
dataset: {{path: data.jsonl}}
scoring_models:
  - {{name: small, path: {WORLD}/models/small}}
  - {{name: large, path: {WORLD}/models/large}}
rating: {{num_prompts: {prompts}}}
selection: {{share: 0.2, arms: [{{kind: selectit}}, {{kind: random, seeds: [1]}}]}}
""",
        encoding="utf-8",
    )
    return path


def _selectit(*arguments: object) -> None:
    subprocess.run([sys.executable, "-c", _MAIN, *map(str, arguments)], cwd=ROOT, check=True)


def _serve(path: Path, home: Path) -> Served:
    argv = [sys.executable, "-c", _MAIN, "ui", str(path), "--home", str(home)]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    addresses = dict(process.stdout.readline().split() for _ in range(2))
    experiment = load_experiment(path)
    pipeline = Pipeline(experiment, Home(home.resolve(), experiment.name))
    return Served(path, pipeline, process, addresses["Dagster"])


def _end(served: Served) -> None:
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=120) == 0


@pytest.fixture
def served(tmp_path):
    path = _experiment(tmp_path / "world", records=60, prompts=2)
    _selectit("run", path, "--home", tmp_path / "home")
    served = _serve(path, tmp_path / "home")
    yield served
    _end(served)


def test_a_changing_file_is_re_selected_once_per_change_and_nothing_else_is(served):
    served.turn_on("watched_dataset_changed")
    served.turn_on("watched_follow_changed_data")
    assert served.quiet(_TICKS) == []
    for number in range(1, ROUNDS + 1):
        os.utime(served.data)
        assert served.quiet(_TICKS) == [], "a touched file is not a change"
        known = {run["runId"] for run in served.runs()}
        _write(served.data, 10 * number, 60)
        begun = served.until(
            lambda known=known: [
                run
                for run in served.runs()
                if run["runId"] not in known and "random-1" in run["tags"].values()
            ]
        )
        assert served.finished(begun[0]["runId"]) == "SUCCESS"
        assert served.quiet(_TICKS) == []
        new = [run for run in served.runs() if run["runId"] not in known]
        assert [run["status"] for run in new] == ["SUCCESS", "SUCCESS"]
        # one run from the raw dataset to SelectIT's set, then one for the other arm
        assert [run["tags"].get("dagster/partition") for run in new] == ["random-1", "selectit"]
        assert new[1]["jobName"] == "watched_reselect"
        _says_what_moved(served)


def _says_what_moved(served: Served) -> None:
    change = served.line.history("selectit").current.change
    assert change["kept"] + change["entered"] == 12
    assert change["kept"] + change["left"] == 12
    with open_instance(served.line.home.dagster) as instance:
        (record,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(
                dg.AssetKey(["watched", "selected_dataset"]), asset_partitions=["selectit"]
            ),
            limit=1,
        ).records
    shown = record.asset_materialization.metadata
    assert shown["change"].value == change["text"]
    assert ("entered_and_left" in shown) == bool(change["entered"] or change["left"])


def test_another_alpha_from_the_launchpad_is_tried_beside_the_ranking_and_scores_nothing(served):
    line = served.line
    scored = [read_manifest(line.home.scores(name)).created_at for name in ("small", "large")]
    before = read_manifest(line.home.ranking)
    run = served.launch("ranking", alpha=2.5, num_prompts="1", models=["large"], variant="paper")
    assert served.finished(run) == "SUCCESS"
    # beside the current ranking, which stays as it is
    assert read_manifest(line.home.ranking).digest == before.digest
    (tried,) = line.what_ifs()
    assert (tried["settings"]["alpha"], tried["settings"]["models"]) == (2.5, ["large"])
    assert [read_manifest(line.home.scores(n)).created_at for n in ("small", "large")] == scored
    subset = served.launch("selected_dataset", "random-1", count=7, seed=99)
    assert served.finished(subset) == "SUCCESS"
    assert {(w["arm"], w["selected"]) for w in line.what_ifs()} >= {("random-1", 7)}
    # the two rankings stand side by side in MLflow
    link = served.run(run)["tags"]["mlflow/comparison"]
    assert "/#/compare-runs?runs=" in link


def test_a_value_out_of_bounds_is_refused_in_the_form_and_others_say_why(served):
    for config, said in (
        ({"num_prompts": "9"}, "not in enum type"),
        ({"models": ["huge"]}, "not in enum type"),
        ({"alpha": 101.0}, r"(?s)alpha 101.0 is out of its range.*0 to 100.*'stack': \[\]"),
    ):
        with pytest.raises(AssertionError, match=said):
            served.launch("ranking", **config)
    foreign = served.launch("selected_dataset", "random-1", model="large")
    assert served.finished(foreign) == "FAILURE"
    told = served.until(lambda: served.run(foreign)["tags"].get(REMEDY_TAG))
    assert "which takes none" in told


@pytest.fixture
def scoring(tmp_path):
    """A home whose scoring takes long enough to be killed."""
    path = _experiment(tmp_path / "world", records=3000, prompts=5)
    _selectit("run", path, "--home", tmp_path / "home", "--upto", "curated_dataset")
    served = _serve(path, tmp_path / "home")
    yield served
    if served.process.poll() is None:
        _end(served)


def _worker(served: Served, run_id: str) -> psutil.Process:
    """Wait until a run's step is at work and return the run's worker process."""
    parts = served.line.home.scores("large")
    served.until(lambda: served.run(run_id)["status"] == "STARTED")
    # a journal with rows in it: before that there is nothing to go on from
    served.until(lambda: any(path.stat().st_size > 1000 for path in parts.glob("journal-0*")))
    with open_instance(served.line.home.dagster) as instance:
        log = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    texts = [e.message or e.user_message or "" for e in log]
    started = next(text for text in texts if "Started process for run" in text)
    return psutil.Process(int(started.split("pid: ")[1].split(")")[0]))


def _slots(served: Served) -> int:
    with open_instance(served.line.home.dagster) as instance:
        return len(instance.event_log_storage.get_concurrency_run_ids())


def _mlflow_states(served: Served, run_id: str) -> set[str]:
    tracker = make_tracker(served.line)
    found = tracker.client.search_runs(
        [tracker.experiment_id], f"tags.`dagster.run_id` = '{run_id}'"
    )
    return {run.info.status for run in found}


def test_a_killed_worker_frees_what_it_held_and_the_next_run_goes_on(scoring):
    run = scoring.launch("uncertainty_scores/large")
    worker = _worker(scoring, run)
    steps = worker.children(recursive=True)
    # a second model waits for the first: the pool lets one in
    second = scoring.launch("uncertainty_scores/small")
    scoring.until(lambda: scoring.run(second)["status"] in ("STARTED", "QUEUED"))
    assert read_manifest(scoring.line.home.scores("small")) is None
    worker.kill()
    assert scoring.finished(run) == "FAILURE"
    psutil.wait_procs(steps, timeout=30)
    assert not [step for step in steps if step.is_running()]
    scoring.until(lambda: _mlflow_states(scoring, run) == {"FAILED"})
    told = scoring.until(lambda: scoring.run(run)["tags"].get(REMEDY_TAG))
    assert "was killed, or the machine ran out of memory" in told
    assert scoring.finished(second) == "SUCCESS"  # the slot came free
    again = scoring.launch("uncertainty_scores/large")
    assert scoring.finished(again) == "SUCCESS"
    manifest = read_manifest(scoring.line.home.scores("large"))
    assert manifest.counts["resumed"] > 0, "it began again instead of going on"
    scoring.until(lambda: _slots(scoring) == 0)


def test_when_everything_is_killed_the_next_start_cleans_up(scoring):
    run = scoring.launch("uncertainty_scores/large")
    _worker(scoring, run)
    everything = psutil.Process(scoring.process.pid).children(recursive=True)
    for process in [psutil.Process(scoring.process.pid), *everything]:
        process.kill()
    scoring.process.wait()
    psutil.wait_procs(everything, timeout=30)
    served = _serve(scoring.path, scoring.line.home.root)
    try:
        assert served.finished(run) == "FAILURE"
        served.until(lambda: _mlflow_states(served, run) == {"FAILED"})
        served.until(lambda: _slots(served) == 0)
        assert "was killed" in served.until(lambda: served.run(run)["tags"].get(REMEDY_TAG))
    finally:
        _end(served)
