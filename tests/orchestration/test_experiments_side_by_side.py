"""Several experiments in one home, apart in Dagster; homes that Dagster does not know."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest
from small_home import write_experiment

from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.definitions import build_defs, build_location, experiment_files
from selectit_dagster.errors import UserError
from selectit_dagster.launch.run import run_experiment
from selectit_dagster.orchestration.instance import open_instance


def _named(folder: Path, name: str, **replaced: str) -> Path:
    path = write_experiment(folder / name, tuning=False)
    text = path.read_text(encoding="utf-8").replace("name: small", f"name: {name}")
    for old, new in replaced.items():
        text = text.replace(old, new)
    path.write_text(f"{text}tracking: {{enabled: false}}\n", encoding="utf-8")
    for model in ("little", "big"):
        (path.parent / model).mkdir()
    return path


def test_two_experiments_of_one_home_have_keys_jobs_and_triggers_of_their_own(tmp_path):
    files = [_named(tmp_path, "weekly"), _named(tmp_path, "monthly")]
    repository = build_location(files, tmp_path / "home").get_repository_def()
    keys = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert {"weekly/ranking", "monthly/ranking"} <= keys
    for kind in (repository.job_names, repository.schedule_defs, repository.sensor_defs):
        names = [item if isinstance(item, str) else item.name for item in kind]
        names = [name for name in names if not name.startswith("__")]
        assert len(names) == len(set(names))
        assert all(name.startswith(("weekly_", "monthly_")) for name in names)
    groups = {
        repository.asset_graph.get(key).group_name
        for key in map(dg.AssetKey.from_user_string, keys)
    }
    ours = sorted(group.removeprefix("weekly_") for group in groups if group.startswith("weekly_"))
    assert ours == ["data", "rating", "selection", "verdict"]  # sorted as the pipeline runs


def test_each_experiment_is_known_by_what_it_made_itself(tmp_path):
    files = [_named(tmp_path, "weekly"), _named(tmp_path, "monthly")]
    for file in files:
        run_experiment(file, tmp_path / "home", upto="curated_dataset")
    again = [run_experiment(f, tmp_path / "home", upto="curated_dataset") for f in files]
    assert [outcome.materialised for outcome in again] == [[], []]
    with open_instance(tmp_path / "home" / "dagster") as instance:
        for name in ("weekly", "monthly"):
            key = dg.AssetKey([name, "curated_dataset"])
            shown = instance.get_latest_materialization_event(key).asset_materialization.metadata
            assert f"/experiments/{name}/" in shown["dagster/uri"].value
        runs = instance.get_runs()
    assert {run.tags["selectit/experiment"] for run in runs} == {"weekly", "monthly"}


def test_runs_of_the_command_are_runs_of_the_locations_jobs(tmp_path):
    """So they stand on the timeline, and the page can execute them again."""
    run_experiment(_named(tmp_path, "weekly"), tmp_path / "home", upto="curated_dataset")
    with open_instance(tmp_path / "home" / "dagster") as instance:
        (run,) = instance.get_runs()
    assert run.job_name == "weekly_rate"
    origin = run.remote_job_origin.repository_origin
    assert origin.code_location_origin.location_name == "selectit"
    assert run.tags_for_storage()[".dagster/repository"] == "__repository__@selectit"


def test_a_second_run_on_one_experiment_is_refused_by_name_and_another_runs(tmp_path):
    first, second = _named(tmp_path, "weekly"), _named(tmp_path, "monthly")
    with folder_lock(tmp_path / "home" / "experiments" / "weekly", "selectit run"):
        with pytest.raises(UserError, match=r"experiments/weekly is in use by selectit run"):
            run_experiment(first, tmp_path / "home", upto="raw_dataset")
        made = run_experiment(second, tmp_path / "home", upto="raw_dataset")
    assert made.materialised == ["raw_dataset"]


def test_experiments_or_models_that_would_share_keys_are_refused_with_their_files(tmp_path):
    files = [_named(tmp_path, "a-b"), _named(tmp_path, "a_b")]
    with pytest.raises(UserError, match="would have the same assets") as caught:
        build_location(files, tmp_path / "home")
    assert all(str(file) in caught.value.message for file in files)
    twins = _named(tmp_path, "twins", big="lit-tle", little="lit_tle")
    with pytest.raises(UserError, match="lit_tle and lit-tle give one asset key") as caught:
        build_defs(experiment_file=twins, home=tmp_path)
    assert str(twins) in caught.value.message


def test_a_broken_file_of_a_folder_says_so_and_leaves_the_others_alone(tmp_path):
    good = _named(tmp_path, "weekly")
    (good.parent / "broken.yaml").write_text("name: [", encoding="utf-8")
    files = experiment_files([good.parent])
    graph = build_location(files, tmp_path / "home").get_repository_def().asset_graph
    assert dg.AssetKey(["weekly", "ranking"]) in graph.get_all_asset_keys()
    told = graph.get(dg.AssetKey(["broken", "cannot_be_loaded"])).description
    assert "not valid YAML" in told
    with pytest.raises(UserError, match="not valid YAML"):
        build_location([good.parent / "broken.yaml"], tmp_path / "home")
    with pytest.raises(UserError, match="holds no experiment file"):
        experiment_files([tmp_path / "home"] if (tmp_path / "home").mkdir() is None else [])


def test_owner_and_name_of_the_selected_asset_come_from_the_experiment(tmp_path):
    path = _named(tmp_path, "paper")
    with path.open("a", encoding="utf-8") as handle:
        handle.write("dagster: {selected_asset: selective_alpaca, owners: ['team:data']}\n")
    graph = (
        build_defs(experiment_file=path, home=tmp_path / "home").get_repository_def().asset_graph
    )
    node = graph.get(dg.AssetKey(["paper", "selective_alpaca"]))
    assert list(node.owners) == ["team:data"]


def test_a_home_that_dagster_knows_nothing_of_is_recorded_and_nothing_is_made_again(tmp_path):
    path, home = _named(tmp_path, "weekly"), tmp_path / "home"
    run_experiment(path, home, upto="curated_dataset")
    made = {p: p.stat().st_mtime_ns for p in (home / "experiments").rglob("*.parquet")}
    assert made
    shutil.rmtree(home / "dagster")  # as in a home whose keys had another form
    again = run_experiment(path, home, upto="curated_dataset")
    assert again.materialised == ["raw_dataset", "curated_dataset"]
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert run_experiment(path, home, upto="curated_dataset").materialised == []


@pytest.mark.parametrize(("name", "said"), [("100%20sure", "%20"), ("why?", r"\?")])
def test_a_home_in_which_no_database_can_lie_is_refused_at_once(tmp_path, name, said):
    with pytest.raises(UserError, match=f"cannot lie in a path with {said}"):
        run_experiment(_named(tmp_path, "weekly"), tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_home_may_have_brackets_and_spaces_in_its_path(tmp_path):
    name = "with [brackets]"
    path = _named(tmp_path, "weekly")
    text = path.read_text("utf-8").replace("tracking: {enabled: false}\n", "")
    path.write_text(text, encoding="utf-8")
    outcome = run_experiment(path, tmp_path / name, upto="curated_dataset")
    assert outcome.tracking_failures == 0
    assert (tmp_path / name / "mlflow" / "mlflow.db").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "weekly"])
    assert run_experiment(path, tmp_path / name, upto="curated_dataset").materialised == []
