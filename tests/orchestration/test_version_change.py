"""The commands and the job on versions: list, compare, go back, promote, prune."""

from __future__ import annotations

import json
import os
import shutil
import time

import dagster as dg
import pytest
from click.testing import CliRunner
from small_home import fill, make_pipeline, write_experiment

from selectit_dagster.artefacts.home import Home
from selectit_dagster.cli.main import cli
from selectit_dagster.definitions import build_defs
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.instance import open_instance
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.remote_sync import bring
from selectit_dagster.progress import Silent

VERSION = "dagster/data_version"


class Place:
    """A filled home with two versions of SelectIT's set."""

    def __init__(self, folder):
        self.pipeline = fill(make_pipeline(folder, tuning=False), upto="selected_dataset")
        self.path = folder / "small.yaml"
        self.home = self.pipeline.home

    def call(self, *arguments):
        more = [str(self.path), "--home", str(self.home.root)]
        found = CliRunner().invoke(cli, [*arguments, *more], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.stdout

    def resize(self, share):
        """Select with another share in the experiment file, as the second week's run."""
        text = self.path.read_text().replace("share: 0.25", f"share: {share}")
        self.path.write_text(text)
        self.pipeline = Pipeline(load_experiment(self.path), self.home)
        return self.pipeline.selected("selectit").run(Silent())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = Place(tmp_path_factory.mktemp("versions"))
    found.resize(0.5)
    return found


def test_the_versions_are_listed_and_compared(place):
    listed = json.loads(place.call("history", "selectit", "--json"))
    assert [row["version"] for row in listed["versions"]["selectit"]] == ["v2 (current)", "v1"]
    text = place.call("history")
    assert "v2 (current)" in text and "random-1" in text
    change = json.loads(place.call("diff", "v1", "current", "--json"))
    assert (change["kept"], change["entered"]) == (14, 15)
    assert change["settings"] == [{"name": "size", "old": "share 0.25", "new": "share 0.5"}]
    assert place.call("diff", "v1", "v2").startswith("Settings differ: size share 0.25 → share 0.5")


def test_a_what_if_is_listed_compared_and_promoted(place):
    name = json.loads(place.call("rank", "--alpha", "0.9", "--json"))["what_if"]
    assert name in place.call("history")
    change = json.loads(place.call("diff", "current", name, "--json"))
    assert change["settings"] == [{"name": "alpha", "old": 0.2, "new": 0.9}]
    assert "more even" in place.call("promote", name, "--because", "more even")
    assert place.pipeline.history("selectit").current.what_if == name


def test_going_back_tells_dagster_and_what_read_the_other_is_stale(place):
    said = place.call("rollback", "v1", "--because", "half is too much")
    assert "v1 is in use" in said and "half is too much" in said
    first = place.pipeline.history("selectit").find("v1")
    with open_instance(place.home.dagster) as instance:
        (record,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(
                dg.AssetKey(["small", "selected_dataset"]), asset_partitions=["selectit"]
            ),
            limit=1,
        ).records
    assert record.asset_materialization.tags[VERSION] == first.digest
    assert place.pipeline.selected("selectit").is_current()


def test_the_job_of_the_page_does_the_same(place):
    definitions = build_defs(experiment_file=place.path, home=place.home.root)
    job = definitions.resolve_job_def("small_roll_back")
    config = {"ops": {"small_use_version": {"config": {"version": "v2", "because": "it was fine"}}}}
    with open_instance(place.home.dagster) as instance:
        result = job.execute_in_process(instance=instance, run_config=config)
    current = place.pipeline.history("selectit").current
    made = result.asset_materializations_for_node("small_use_version")
    assert current.name == "v2"
    assert made[0].tags[VERSION] == current.digest


def test_pruning_lists_bytes_and_removes_only_when_told(place):
    arguments = ("prune", "--keep", "1", "--days", "0")
    listed = json.loads(place.call(*arguments, "--json"))
    named = [row["name"] for row in listed["what"] if row["what"] == "version"]
    assert named == ["selectit v1"]  # v2 is in use, v3 the newest
    assert "may be removed" in place.call(*arguments)
    history = place.pipeline.history("selectit")
    assert history.place(history.find("v1")).exists()
    for facts in place.pipeline.what_ifs():
        os.utime(place.home.what_ifs / facts["name"], (time.time() - 60,) * 2)
    assert "removed" in place.call(*arguments, "--yes")
    assert place.pipeline.what_ifs() == []
    with pytest.raises(UserError, match="no longer kept"):
        history.find("v1")
    assert place.pipeline.selected("selectit").is_current()


def test_only_another_experiment_can_be_dropped(place):
    with pytest.raises(UserError, match="small is no other experiment of this home"):
        place.call("prune", "--drop", "small")
    other = place.home.root / "experiments" / "other"
    other.mkdir()
    (other / "file").write_bytes(b"x" * 1000)
    listed = json.loads(place.call("prune", "--drop", "other", "--json"))
    assert {"what": "experiment", "name": "other", "why": "asked for by name", "bytes": 1000} in (
        listed["what"]
    )
    write_experiment(place.path.parent, tuning=False)


def test_versions_come_from_storage_to_another_home(tmp_path):
    here = Place(tmp_path)
    here.path.write_text(here.path.read_text() + f"storage: {{url: file://{tmp_path / 'store'}}}\n")
    here.resize(0.5)
    here.call("rollback", "v1", "--because", "half is too much")
    experiment = load_experiment(here.path)
    there = Pipeline(experiment, Home(tmp_path / "elsewhere", experiment.name))
    history = there.history("selectit")
    assert bring(there.store, history.folder, Silent()) == "fetched"
    assert [v.name for v in history.state.versions] == ["v1", "v2"]
    assert history.current.name == "v1"
    assert bring(there.store, history.place(history.current), Silent()) == "fetched"
    assert bring(there.store, there.home.selected("selectit"), Silent()) == "fetched"
    assert "half is too much" in history.said()


def test_another_home_selects_on_from_the_version_in_storage(tmp_path):
    here = Place(tmp_path)
    here.path.write_text(here.path.read_text() + f"storage: {{url: file://{tmp_path / 'store'}}}\n")
    here.resize(0.5)
    other = Home(tmp_path / "elsewhere", here.home.experiment)
    shutil.copytree(
        here.home.folder, other.folder, ignore=shutil.ignore_patterns("selected", "history")
    )
    there = Pipeline(load_experiment(here.path), other)
    there.selected("selectit").run(Silent())
    assert there.selected("selectit").was_fetched()
    here.path.write_text(here.path.read_text().replace("share: 0.5", "share: 0.3"))
    there = Pipeline(load_experiment(here.path), other)
    there.selected("selectit").run(Silent())
    found = there.history("selectit").current
    assert (found.name, found.change["entered"]) == ("v3", 0)
    assert found.change["left"] > 0


@pytest.mark.slow
def test_pruning_forgets_runs_of_dagster_and_mlflow_but_for_the_newest(tmp_path):
    place = Place(tmp_path)
    definitions = build_defs(experiment_file=place.path, home=place.home.root)
    job = definitions.resolve_implicit_global_asset_job_def()
    selected = dg.AssetKey(["small", "selected_dataset"])
    with open_instance(place.home.dagster) as instance:
        ran = [
            job.execute_in_process(
                instance=instance, asset_selection=[selected], partition_key="selectit"
            ).run_id
            for _ in range(2)
        ]
    time.sleep(1)
    listed = json.loads(place.call("prune", "--days", "0", "--json"))["what"]
    named = {row["what"]: row["name"] for row in listed}
    assert named["Dagster run"] == ran[0][:8]
    assert listed[1]["why"].endswith(ran[0][:8]) and listed[1]["bytes"] > 1000
    place.call("prune", "--days", "0", "--yes")
    assert json.loads(place.call("prune", "--days", "0", "--json"))["what"] == []
    with open_instance(place.home.dagster) as instance:
        assert [run.run_id for run in instance.get_runs()] == [ran[1]]
