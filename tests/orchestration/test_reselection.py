"""Re-selection: a touched file, an unchanged one and a real change; what entered and left."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import write_manifest
from selectit_dagster.data.ingest import IngestRequest, ingest_fingerprint
from selectit_dagster.definitions import build_defs
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.instance import open_instance
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.progress import Silent


class World:
    """One experiment over a file that changes, with its instance and its triggers."""

    def __init__(self, folder: Path, model: Path, instance: dg.DagsterInstance) -> None:
        self.data = folder / "data.jsonl"
        self.write(range(20))
        self.path = folder / "changing.yaml"
        self.path.write_text(
            f"""
name: changing
dataset: {{path: data.jsonl}}
scoring_models: [{{name: one, path: {model}}}]
rating: {{num_prompts: 1}}
selection: {{share: 0.25, arms: [{{kind: selectit}}, {{kind: random, seeds: [1]}}]}}
tracking: {{enabled: false}}
""",
            encoding="utf-8",
        )
        self.home, self.instance = folder / "home", instance
        self.cursors: dict[str, object] = {}
        experiment = load_experiment(self.path)
        self.line = Pipeline(experiment, Home(self.home, experiment.name))
        self.definitions = build_defs(experiment_file=self.path, home=self.home)

    def write(self, numbers) -> None:
        """Write the dataset, as if it had been there for a minute."""
        rows = [
            {"id": f"r{i}", "instruction": f"Name {i}.", "output": f"It is {i * i}."}
            for i in numbers
        ]
        self.data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        self.age(60)

    def age(self, seconds: float) -> None:
        """Set the file's time to ``seconds`` ago."""
        then = time.time() - seconds
        os.utime(self.data, (then, then))

    def sensor(self) -> dg.SensorResult:
        """Evaluate the sensor as the daemon does, with the cursor of the evaluation before."""
        repository = self.definitions.get_repository_def()
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get("sensor"),
            repository_def=repository,
        )
        found = repository.get_sensor_def("changing_dataset_changed").evaluate_tick(context)
        self.cursors["sensor"] = found.cursor or self.cursors.get("sensor")
        return found

    def reselect(self) -> None:
        """Run the schedule's job, as the schedule itself asks for it."""
        repository = self.definitions.get_repository_def()
        with dg.build_schedule_context(self.instance, repository_def=repository) as context:
            asked = repository.get_schedule_def("changing_reselection").evaluate_tick(context)
        (request,) = asked.run_requests
        job = self.definitions.resolve_job_def("changing_reselect")
        key = request.tags["dagster/partition"]
        assert job.execute_in_process(instance=self.instance, partition_key=key).success

    def follow(self) -> set[str]:
        """Evaluate the automation conditions, run what they ask for, and return its names."""
        found = dg.evaluate_automation_conditions(
            self.definitions, self.instance, cursor=self.cursors.get("automation")
        )
        self.cursors["automation"] = found.cursor
        job = self.definitions.resolve_implicit_global_asset_job_def()
        names = set()
        for result in found.results:
            for key in self._partitions(result.true_subset):
                names.add(result.key.to_user_string() + (f" [{key}]" if key else ""))
                job.execute_in_process(
                    instance=self.instance, asset_selection=[result.key], partition_key=key
                )
        return names

    @staticmethod
    def _partitions(subset) -> list[str | None]:
        if subset.is_partitioned:
            return sorted(subset.expensively_compute_partition_keys())
        return [] if subset.is_empty else [None]


@pytest.fixture
def world(tmp_path, tiny_model_folder):
    with open_instance(tmp_path / "home" / "dagster") as instance:
        yield World(tmp_path, tiny_model_folder, instance)


def _runs(found) -> int:
    return len(found.run_requests or [])


def test_a_dataset_that_was_never_read_starts_nothing(world):
    assert _runs(world.sensor()) == 0
    assert _runs(world.sensor()) == 0


def test_only_new_content_of_the_file_asks_for_a_run(world):
    world.line.raw().run(Silent())
    assert _runs(world.sensor()) == 0
    world.age(30)  # touched
    touched = world.sensor()
    assert _runs(touched) == 0
    assert "content is the one that was read" in touched.skip_message
    world.write(range(22))
    world.age(1)
    assert "waiting for its end" in world.sensor().skip_message
    world.age(20)
    changed = world.sensor()
    assert _runs(changed) == 1
    assert changed.run_requests[0].tags["dagster/partition"] == "selectit"
    again = world.sensor()  # asked for under the same key, of which Dagster starts one run
    assert [r.run_key for r in again.run_requests] == [r.run_key for r in changed.run_requests]
    world.data.unlink()
    assert "cannot be read" in world.sensor().skip_message


def _ended(world, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
    """Have a requested run end so, as the daemon would find it."""
    job = world.definitions.resolve_job_def("changing_reselect")
    world.instance.create_run_for_job(job, status=status, tags=dict(request.tags))


def test_a_run_that_dies_is_asked_for_again_and_success_moves_the_cursor(world):
    world.line.raw().run(Silent())
    world.write(range(22))
    keys = []
    for _ in range(2):
        (request,) = world.sensor().run_requests
        keys.append(request.run_key)
        _ended(world, request, dg.DagsterRunStatus.STARTED)
        assert "is re-selecting" in world.sensor().skip_message
        (run,) = world.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        world.instance.report_run_failed(run)
    world.line.raw().run(Silent())  # the run had read it when it died
    (request,) = world.sensor().run_requests
    assert len({*keys, request.run_key}) == 3
    _ended(world, request, dg.DagsterRunStatus.SUCCESS)
    assert "re-selected from it" in world.sensor().skip_message
    assert "unchanged" in world.sensor().skip_message


def test_a_change_whose_runs_all_fail_is_given_up_until_the_next_change(world):
    world.line.raw().run(Silent())
    world.write(range(22))
    for _ in range(3):
        (request,) = world.sensor().run_requests
        _ended(world, request, dg.DagsterRunStatus.FAILURE)
    assert "3 runs over it failed" in world.sensor().skip_message
    world.write(range(23))
    assert _runs(world.sensor()) == 1


def test_a_file_that_goes_back_to_its_former_content_is_read_again(world):
    world.line.raw().run(Silent())
    keys = []
    for count, then in ((22, 2e9), (20, 1e9), (22, 2e9)):
        world.write(range(count))
        os.utime(world.data, (then - 1e9, then - 1e9))
        (request,) = world.sensor().run_requests
        keys.append(request.run_key)
        _ended(world, request, dg.DagsterRunStatus.SUCCESS)
        world.sensor()
        world.line.raw().run(Silent())
    assert len(set(keys)) == 3


def test_a_new_commit_on_the_hub_asks_for_a_run(tmp_path, monkeypatch):
    from selectit_dagster.data import ingest
    from selectit_dagster.errors import TransientError

    commits = ["a" * 40]

    def resolve(section: object) -> str:
        if not commits:
            raise TransientError("the hub does not answer")
        return commits[-1]

    monkeypatch.setattr(ingest, "dataset_commit", resolve)
    path = tmp_path / "hub.yaml"
    path.write_text(
        "name: hub\ndataset: {path: owner/data}\nscoring_models: [{name: m, path: ./m}]\n",
        encoding="utf-8",
    )
    experiment = load_experiment(path)
    place = Home(tmp_path / "home", "hub")
    fingerprint = ingest_fingerprint(IngestRequest(experiment.dataset))
    place.raw.mkdir(parents=True)
    write_manifest(place.raw, kind="raw_dataset", fingerprint=fingerprint, files=[], counts={})
    repository = build_defs(experiment_file=path, home=tmp_path / "home").get_repository_def()
    sensor, cursor = repository.get_sensor_def("hub_dataset_changed"), None

    def tick():
        nonlocal cursor
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance, cursor, repository_def=repository)
            found = sensor.evaluate_tick(context)
        cursor = found.cursor or cursor
        return found

    assert _runs(tick()) == 0
    commits.append("b" * 40)
    assert _runs(tick()) == 1
    commits.clear()
    assert "does not answer" in tick().skip_message


def test_a_real_change_re_selects_once_and_says_what_moved(world):
    assert world.follow() == set()  # nothing is there to follow
    world.reselect()
    # turned on with only one arm made: the other arm is brought up to date, once
    assert world.follow() == {"changing/selected_dataset [random-1]"}
    assert world.follow() == set()
    world.reselect()  # the schedule comes round, and the data are the same
    assert world.follow() == set()
    history = world.line.history("selectit")
    assert [v.asked_by for v in history.state.versions] == ["page"]
    assert "nothing changed, still v1" in history.said()

    world.write(range(4, 28))
    assert _runs(world.sensor()) == 1
    world.reselect()
    # the job has brought SelectIT's own set up to date already
    assert world.follow() == {"changing/selected_dataset [random-1]"}
    assert world.follow() == set()
    assert [v.name for v in history.state.versions] == ["v1", "v2"]
    change = history.current.change
    assert change["kept"] + change["entered"] == 6
    assert set(change["entered_by_reason"]) <= {"new record", "score rose", "cut moved"}
    assert set(change["left_by_reason"]) <= {"record gone", "score fell", "cut moved"}


@pytest.mark.slow
def test_a_change_is_followed_step_by_step_where_only_the_raw_dataset_was_read(world):
    world.reselect()
    world.follow()
    world.write(range(26))
    job = world.definitions.resolve_implicit_global_asset_job_def()
    job.execute_in_process(
        instance=world.instance, asset_selection=[dg.AssetKey(["changing", "raw_dataset"])]
    )
    steps = [world.follow() for _ in range(6)]
    assert steps == [
        {"changing/curated_dataset"},
        {"changing/uncertainty_scores/one"},
        {"changing/ranking"},
        {"changing/selected_dataset [selectit]", "changing/selected_dataset [random-1]"},
        {"changing/production_dataset"},
        set(),
    ]


def test_tuning_never_starts_by_itself():
    default = Path(__file__).resolve().parents[2] / "experiments" / "default.yaml"
    graph = build_defs(experiment_file=default).get_repository_def().asset_graph
    follow = {
        "/".join(key.path[1:])
        for key in graph.get_all_asset_keys()
        if graph.get(key).automation_condition is not None
    }
    assert follow == {
        "curated_dataset",
        "uncertainty_scores/small",
        "uncertainty_scores/large",
        "ranking",
        "selected_dataset",
        "production_dataset",
    }
    assert graph.get(dg.AssetKey(["miniature", "production_dataset"])).freshness_policy is not None


def test_the_schedule_does_not_pile_up_runs_that_wait(world):
    repository = world.definitions.get_repository_def()
    job = world.definitions.resolve_job_def("changing_reselect")

    def tick():
        with dg.build_schedule_context(world.instance, repository_def=repository) as context:
            return repository.get_schedule_def("changing_reselection").evaluate_tick(context)

    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("selectit"), "__repository__")
    origin = place.get_job_origin("changing_reselect")
    for status, asked in ((dg.DagsterRunStatus.STARTED, 1), (dg.DagsterRunStatus.QUEUED, 0)):
        world.instance.create_run_for_job(job, status=status, remote_job_origin=origin)
        found = tick()
        assert len(found.run_requests or []) == asked
    assert "waiting already" in found.skip_message
