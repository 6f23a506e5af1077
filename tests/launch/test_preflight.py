"""What a run refuses before its first stage."""

from __future__ import annotations

import pytest
from small_home import write_experiment

from selectit_dagster.errors import UserError
from selectit_dagster.launch.preflight import open_pipeline, preflight

_LINE = "benchmarks: [{name: sums, task: exact-match, path: ./sums.jsonl}]"


@pytest.fixture
def opened(tmp_path):
    def make(benchmark: str):
        path = write_experiment(tmp_path, tuning=True)
        text = path.read_text().replace(_LINE, f"benchmarks: [{benchmark}]")
        path.write_text(text)
        (tmp_path / "little").mkdir(exist_ok=True)
        (tmp_path / "big").mkdir(exist_ok=True)
        (tmp_path / "gsm").mkdir(exist_ok=True)
        (tmp_path / "gsm" / "test.jsonl").write_text('{"question": "?", "answer": "#### 1"}\n')
        return open_pipeline(path, tmp_path / "home")

    return make


@pytest.mark.parametrize("shots", ["shots.jsonl", "my-shots"])
def test_worked_examples_that_are_not_there_are_named_before_anything_starts(opened, shots):
    pipeline = opened(f"{{name: g, task: gsm8k, path: ./gsm, shots_path: {shots}}}")
    with pytest.raises(UserError, match=r"benchmarks.0.shots_path: .*does not exist"):
        preflight(pipeline)


def test_a_benchmark_folder_without_its_files_is_named_before_anything_starts(opened):
    with pytest.raises(UserError, match="holds no MMLU test questions"):
        preflight(opened("{name: m, task: mmlu, path: ./gsm}"))


def test_what_is_there_passes(opened):
    preflight(opened("{name: g, task: gsm8k, path: ./gsm, shots_path: lm-eval}"))
