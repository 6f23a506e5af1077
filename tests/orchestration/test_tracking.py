"""MLflow: parents and children, digests, and what happens when the store fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectit_dagster.errors import UserError
from selectit_dagster.local_servers import free_port
from selectit_dagster.orchestration.tracking import (
    ARM_ROWS,
    Tracker,
    flatten,
    numbers,
    split_constants,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow")


def make(store, **options):
    return Tracker(
        uri=f"sqlite:///{store / 'mlflow.db'}",
        experiment="test",
        folder=store,
        ui_url="http://127.0.0.1:5000",
        wait=lambda seconds: None,
        **options,
    )


def test_settings_are_flattened_to_dotted_parameters():
    value = {"rating": {"alpha": 0.2, "seeds": [1, 2]}, "models": [{"name": "a", "path": "p"}]}
    assert flatten(value) == {
        "rating.alpha": "0.2",
        "rating.seeds": "[1, 2]",
        "models.a.name": "a",
        "models.a.path": "p",
    }


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers(-(10**6), 10**6) | st.text(),
        lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_only_finite_numbers_become_metrics(value):
    for number in numbers(value).values():
        assert number == number
        assert abs(number) != float("inf")


def test_children_of_one_dagster_run_share_one_parent(store):
    tracker = make(store)
    first = tracker.parent("run-1", "parent", {})
    second = make(store).parent("run-1", "parent", {})
    assert first == second
    with tracker.asset_run(first, "child", {"dagster.run_id": "run-1"}) as run:
        run.params({"rating": {"alpha": 0.2}})
        run.metrics({"score": 1.5})
        run.dataset("data", "f" * 64, store, 10, "training")
    stored = tracker.client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["mlflow.parentRunId"] == first
    assert stored.data.params["rating.alpha"] == "0.2"
    assert stored.inputs.dataset_inputs[0].dataset.digest == "f" * 36


def test_a_failed_stage_leaves_a_failed_run_with_its_message(store):
    tracker = make(store)
    with pytest.raises(ValueError, match="broken"), tracker.asset_run(None, "x", {}) as run:
        raise ValueError("broken")
    stored = tracker.client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["selectit.error"] == "broken"


def test_closing_ends_every_run_of_a_dagster_run_that_was_left_running(store):
    tracker = make(store)
    parent = tracker.parent("run-2", "parent", {})
    orphan = tracker._open_child(parent, "orphan", {"dagster.run_id": "run-2"})
    assert tracker.close_run("run-2", "FAILED") == 2
    assert tracker.client.get_run(orphan).info.status == "FAILED"
    assert tracker.client.get_run(parent).info.status == "FAILED"


def test_an_adapter_is_registered_with_the_champion_alias(store, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    tracker = make(store)
    with tracker.asset_run(None, "tune", {}) as run:
        run.model(tmp_path, name="selectit-seed-1", tags={"base": "tiny"})
        run.champion("world", "selectit-seed-1", "", {})
    assert tracker.failures() == []
    version = tracker.client.get_model_version_by_alias("world", "champion")
    assert version.run_id == run.run_id
    assert "MLFLOW_TRACKING_URI" not in os.environ  # another home in this process has its own


def test_a_store_that_fails_costs_no_work_and_is_reported(tmp_path):
    broken = tmp_path / "folder-instead-of-database"
    broken.mkdir()
    tracker = Tracker(
        uri=f"sqlite:///{broken}",
        experiment="test",
        folder=tmp_path / "mlflow",
        ui_url="",
        wait=lambda seconds: None,
    )
    with tracker.asset_run(tracker.parent("r", "p", {}), "child", {}) as run:
        run.metrics({"x": 1.0})
        work = "done"
    assert work == "done"
    assert run.run_id is None
    failures = tracker.failures()
    assert failures
    assert {"at", "what", "error"} <= set(failures[0])


@pytest.mark.parametrize(("retries", "seconds"), [(None, 10), ("6", 40)])
def test_a_server_that_is_back_in_time_loses_nothing(tmp_path, monkeypatch, retries, seconds):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    if retries:  # what the deployment sets
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    waited = []
    tracker = Tracker("x", "x", folder=tmp_path, ui_url="", wait=waited.append)

    def restarted():
        if sum(waited) < seconds:
            raise ConnectionError
        return "ok"

    assert tracker.attempt("try", restarted) == "ok"
    assert tracker.failures() == []


def test_a_run_that_ended_while_the_store_was_away_is_left_for_later(store, monkeypatch):
    tracker = make(store)
    tracker.parent("late", "late", {})

    def away(*_):
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(tracker, "_found", away)
        assert tracker.close_run("late", "FINISHED") is None
    assert "late" in tracker.unclosed() and tracker.failures() == []
    assert tracker.close_run("late", "FINISHED") == 1
    assert "late" not in tracker.unclosed()


def test_tracking_switched_off_never_imports_mlflow(tmp_path):
    code = textwrap.dedent(
        """
        import sys, json
        from pathlib import Path
        from selectit_dagster.orchestration.tracking import Tracker
        t = Tracker("sqlite:///x.db", "e", Path(sys.argv[1]), "", enabled=False)
        with t.asset_run(t.parent("r", "p", {}), "c", {}) as run:
            run.metrics({"a": 1}); run.params({"a": 1}); run.artifact(Path(__file__))
        print(json.dumps("mlflow" in sys.modules))
        """
    )
    path = tmp_path / "off.py"
    path.write_text(code, encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, str(path), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout) is False


def test_rating_prompts_have_a_version_for_each_wording_and_runs_name_theirs(
    store, monkeypatch, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("working-directory")
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = make(store)
    tags = {}
    for name, texts in (
        ("a", ["rate it", "judge it"]),
        ("b", ["rate it", "judge it"]),
        ("c", ["x"]),
    ):
        with tracker.asset_run(None, name, {}) as run:
            run.prompts("test-rating-prompts", texts)
        tags[name] = tracker.client.get_run(run.run_id).data.tags["rating_prompts"]
    assert tracker.failures() == []
    assert list(elsewhere.iterdir()) == []  # no store of MLflow's own choice is made
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert tags["a"] == tags["b"] == "test-rating-prompts, version 1"
    assert tags["c"] == "test-rating-prompts, version 2"
    assert (
        tracker.client.get_prompt_version("test-rating-prompts", 1).template
        == "rate it\n\njudge it"
    )


def test_there_is_one_current_row_for_each_arm_and_the_page_begins_with_them(store):
    tracker = make(store)
    assert "viewStateShareKey" not in tracker.start_page()
    with tracker.asset_run(None, "compare", {}) as run:
        run.arms({"selectit": {"sums": 0.25}, "random": {"sums": 0.5}})
        run.arms({"selectit": {"sums": 0.75}, "random": {"sums": 0.5}})
        tracker.save_view("arms", ARM_ROWS, ["metrics.sums"])
    rows = tracker.client.search_runs([tracker.experiment_id], ARM_ROWS)
    assert {r.info.run_name: r.data.metrics["sums"] for r in rows} == {
        "selectit": 0.75,
        "random": 0.5,
    }
    assert all(row.info.status == "FINISHED" for row in rows)
    assert tracker.start_page().endswith("&viewStateShareKey=arms")


def test_what_was_set_is_no_metric():
    measured, constants = split_constants(
        {"theta.small": 7e9, "max_length": 512.0, "score.mean": 1.5, "decontamination.ngram": 13.0}
    )
    assert measured == {"score.mean": 1.5}
    assert constants == {"theta.small": 7e9, "max_length": 512.0, "decontamination.ngram": 13.0}


def test_a_copied_home_shows_its_old_runs_and_writes_into_itself(tmp_path):
    first = make(tmp_path / "a" / "mlflow")
    (tmp_path / "note.txt").write_text("old", encoding="utf-8")
    with first.asset_run(None, "old", {}) as old:
        old.artifact(tmp_path / "note.txt")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "mlflow" / "artifacts")
    second = make(tmp_path / "b" / "mlflow")
    (tmp_path / "note.txt").write_text("new", encoding="utf-8")
    with second.asset_run(None, "new", {}) as new:
        new.artifact(tmp_path / "note.txt")
    for run, text in ((old, "old"), (new, "new")):
        found = second.client.download_artifacts(run.run_id, "note.txt")
        assert Path(found).read_text() == text
    assert not (tmp_path / "a" / "mlflow" / "artifacts").exists()
    assert (
        make(tmp_path / "a" / "mlflow")
        .client.get_run(old.run_id)
        .info.artifact_uri.startswith((tmp_path / "a").as_uri())
    )


def test_a_deleted_experiment_is_restored(tmp_path):
    tracker = make(tmp_path)
    tracker.client.delete_experiment(tracker.experiment_id)
    again = make(tmp_path)
    with again.asset_run(None, "x", {}) as run:
        pass
    assert again.failures() == []
    assert again.client.get_run(run.run_id).info.status == "FINISHED"


def test_required_tracking_stops_the_work_where_the_store_is_gone(tmp_path):
    tracker = Tracker(
        uri=f"http://127.0.0.1:{free_port(0)}",
        experiment="test",
        folder=tmp_path,
        ui_url="",
        required=True,
        wait=lambda seconds: None,
    )
    worked = []
    with (
        pytest.raises(UserError, match=r"tracking.required is true") as caught,
        tracker.asset_run(None, "ranking", {}),
    ):
        worked.append(1)
    assert worked == []
    assert "tracking.required: false" in caught.value.hint


def test_the_newest_runs_of_each_partition_are_compared(store):
    tracker = make(store)
    ids = {}
    for partition in ("full_seed-1", "selectit_seed-1", "selectit_seed-1"):
        tags = {"asset": "compared", "dagster.partition": partition}
        with tracker.asset_run(None, partition, tags) as run:
            ids[partition] = run.run_id
    link = unquote(tracker.comparison_link("compared"))
    assert json.dumps([ids["full_seed-1"], ids["selectit_seed-1"]]) in link
    assert link.startswith("http://127.0.0.1:5000/#/compare-runs?runs=")
    assert tracker.comparison_link("never made") is None


def test_a_server_that_is_gone_costs_no_waiting_and_gives_no_link(tmp_path, monkeypatch, caplog):
    """A later step of a run whose parent was opened while the server still answered."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(
        uri=f"http://127.0.0.1:{free_port(0)}",
        experiment="test",
        folder=tmp_path,
        ui_url="http://127.0.0.1:5000",
        wait=lambda seconds: None,
    )
    assert tracker.link("a run that is known") is None
    with tracker.asset_run("parent", "ranking", {}) as run:
        run.metrics({"a": 1.0})
        run.tags({"b": "c"})
    noted = [failure["what"] for failure in tracker.failures()]
    assert noted == ["find the experiment", "open a run"]
    # found by a look at the port, not by MLflow's own patience
    errors = [failure["error"] for failure in tracker.failures()]
    assert not any("API request" in error for error in errors)
    # told once, not at every call
    assert len([r for r in caplog.records if "MLflow tracking failed" in r.message]) == 1
