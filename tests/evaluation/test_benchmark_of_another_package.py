"""The guide's benchmark, as a package of its own brings it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation.evaluate import EvaluationRequest, evaluate
from selectit_dagster.evaluation.tasks import make_task
from selectit_dagster.experiment import Benchmark
from selectit_dagster.registry import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def capitals(tmp_path, monkeypatch):
    """Install the guide's module and its entry point; return the file of its questions."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "capitals_benchmark.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(BENCHMARKS, "_kinds", BENCHMARKS.kinds())
    monkeypatch.setattr(BENCHMARKS, "_loaded", False)
    entry = importlib.metadata.EntryPoint("capitals", "capitals_benchmark", BENCHMARKS.entry_points)
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [entry] * (group == BENCHMARKS.entry_points),
    )
    path = tmp_path / "capitals.jsonl"
    rows = [{"country": "France", "capital": "Paris"}, {"country": "Peru", "capital": "Lima"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    yield path
    sys.modules.pop("capitals_benchmark", None)


def test_the_guides_benchmark_is_known_validates_and_is_evaluated(
    capitals, tiny_reference, tmp_path
):
    benchmark = Benchmark(name="capitals", task="capitals", path=str(capitals))
    assert make_task(benchmark).validate() == []
    request = EvaluationRequest(tiny_reference, None, (benchmark,), "alpaca", None, 1)
    found = evaluate(request, tmp_path / "out").details["scores"]["capitals"]
    assert (found["n"], found["metric"]) == (2, "plain-exact-match")


def test_an_unknown_task_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="expected: one of alpaca-eval, bbh, exact-match"):
        Benchmark(name="x", task="capitals")


def test_two_benchmarks_of_one_name_are_refused(capitals):
    BENCHMARKS.kinds()
    with pytest.raises(UserError, match="two benchmarks are called 'capitals'"):
        BENCHMARKS.register("capitals")(type("Other", (), {"__module__": "other"}))
