"""Tuned models in the miniature world, through the real stages: the gain, and the control."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from selectit_dagster.artefacts.home import Home
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.progress import Silent
from tools.miniature import build, judge

pytestmark = pytest.mark.slow  # what made the miniature world is a tool, no part of the package

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
PROMISED_POINTS = 8


def shipped(name: str) -> dict[str, Any]:
    """Return a shipped experiment's values with absolute paths."""
    experiment = load_experiment(EXPERIMENTS / f"{name}.yaml")
    return experiment.model_dump(mode="json", exclude_unset=True)


def compared(value: dict[str, Any], root: Path) -> dict[str, Any]:
    """Run an experiment up to its comparison, as the platform does but without it."""
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    pipeline = Pipeline(load_experiment(path), Home(root / "home", value["name"]))
    stages = [s for phase in pipeline.phases() for s in phase if s.asset != "report"]
    manifests = {stage.title: stage.run(Silent()) for stage in stages}
    return manifests["arm_comparison"].details


def the_only_result(details: dict[str, Any], arm: str) -> dict[str, Any]:
    (result,) = details["arms"][arm]["results"].values()
    return result


@pytest.fixture(scope="module")
def small_pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Path]:
    """The comparison of a smaller, fresh pool, its artefacts, and its data."""
    root = tmp_path_factory.mktemp("small-pool")
    build.build(root / "data", seed=23, pool_size=800, control_size=15, benchmark_size=210)
    value = shipped("default")
    value["dataset"]["path"] = str(root / "data" / "pool.jsonl")
    value["benchmarks"][0]["path"] = str(root / "data" / "benchmark.jsonl")
    value["selection"]["arms"] = [
        {"kind": "selectit"}, {"kind": "random", "seeds": [1, 2]}, {"kind": "full"},
    ]  # fmt: skip
    value["tuning"]["seeds"] = [1, 2]
    return compared(value, root), root / "home" / "experiments" / value["name"], root / "data"


def test_model_tuned_on_the_selected_fifth_beats_one_tuned_on_a_random_fifth(small_pool):
    details, _, _ = small_pool
    result = the_only_result(details, "selectit")
    assert details["baseline"] == "random"
    assert details["arms"]["selectit"]["runs"] == details["arms"]["random"]["runs"] == 2
    assert 100 * result["difference"] >= PROMISED_POINTS
    assert result["low"] > 0
    assert result["verdict"] == "better"


def test_model_tuned_on_the_selected_fifth_is_not_below_one_tuned_on_everything(small_pool):
    details, _, _ = small_pool
    assert the_only_result(details, "selectit")["mean"] >= the_only_result(details, "full")["mean"]


def test_what_was_selected_is_right_and_the_random_fifth_is_not(small_pool):
    _, folder, data = small_pool
    quality = judge.read_known_quality(data / "known_quality.jsonl")

    def share_right(arm: str) -> float:
        lines = (folder / "selected" / arm / "data.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 160
        return sum(quality[json.loads(line)["id"]] == "right" for line in lines) / len(lines)

    assert share_right("selectit") >= 0.95
    assert share_right("random-1") < 0.5


def test_control_without_flaws_does_not_claim_that_selection_helps(tmp_path: Path):
    value = shipped("control")
    details = compared(value, tmp_path)
    result = the_only_result(details, "selectit")
    assert details["arms"]["selectit"]["runs"] == details["arms"]["random"]["runs"] == 3
    assert details["benchmarks"]["miniature"]["questions"] == build.BENCHMARK_SIZE
    assert result["verdict"] in {"not significant", "worse"}
    assert "beats" not in details["arms"]["selectit"]["sentence"]


def test_control_differs_from_the_default_in_its_pool_and_arms_alone():
    default, control = (
        load_experiment(EXPERIMENTS / f"{name}.yaml") for name in ("default", "control")
    )
    differs = {
        key for key in type(default).model_fields if getattr(default, key) != getattr(control, key)
    }
    assert differs == {"name", "description", "dataset", "selection"}
    assert Path(control.dataset.path) == build.DATA / "control.jsonl"
    assert [arm.kind for arm in control.selection.arms] == ["selectit", "random"]
    quality = judge.read_known_quality()
    lines = (build.DATA / "control.jsonl").read_text(encoding="utf-8").splitlines()
    assert {quality[json.loads(line)["id"]] for line in lines} == {"right"}
