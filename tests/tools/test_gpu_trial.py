"""Every line of the GPU trial runs on a CPU with small shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tools.benchmarks.gpu_trial import bars, main


@pytest.mark.slow
def test_the_trial_runs_whole_on_a_cpu(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--small", "--out", str(tmp_path / "gpu.json")]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    names = {"sweep", "rating 1B", "rating 7B", "rating 13B", "memory", "evaluation", "tuning"}
    assert names < set(parts)
    assert all("result" in entry and "failed" not in entry["result"] for entry in parts.values())
    assert parts["memory"]["result"]["halvings"] > 0
    assert parts["memory"]["result"]["ok"] == parts["memory"]["result"]["records"]
    assert parts["evaluation"]["result"]["same_answers"] == 1
    assert (tmp_path / "gpu.txt").read_text().startswith("sweep")


def test_a_part_that_gave_nothing_misses_its_bars() -> None:
    reached = bars({"rating 1B": {"result": {"times_faster": 3.5}}, "rating 7B": {"left_out": "-"}})
    assert [row["met"] for row in reached] == [False, False, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_trial_says_so_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "no CUDA card" in capsys.readouterr().out
