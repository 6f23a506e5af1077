"""MLflow: parents and children, digests, and what happens when the store fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectit_dagster.orchestration.tracking import Tracker, flatten, numbers


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
        run.adapter(tmp_path, name="selectit-seed-1", tags={"base": "tiny"})
        run.champion("world", "selectit-seed-1")
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


def test_a_call_is_tried_three_times():
    calls = []
    tracker = Tracker("x", "x", folder=None, ui_url="", wait=lambda s: None)  # type: ignore[arg-type]

    def flaky():
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError
        return "ok"

    assert tracker.attempt("try", flaky) == "ok"
    assert len(calls) == 3


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
    from selectit_dagster.orchestration.services import free_port

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
    assert ["API request" in error for error in errors] == [True, False]
    # told once, not at every call
    assert len([r for r in caplog.records if "MLflow tracking failed" in r.message]) == 1
