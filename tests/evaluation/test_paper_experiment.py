"""The paper's experiment in miniature: its own file, tiny models and data, up to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from selectit_dagster.launch.run import run_experiment

ROOT = Path(__file__).resolve().parents[2]
_TASKS = {
    "MMLU": "mmlu_folder",
    "BBH": "bbh_folder",
    "GSM": "gsm8k_folder",
    "TyDiQA": "tydiqa_folder",
    "CodeX": "humaneval_file",
    "AE": "alpaca_eval_file",
}


def swapped(folder: Path, model: Path, benchmarks: dict[str, Path]) -> Path:
    """Write the paper's experiment with other places of models and data, and nothing else."""
    value = yaml.safe_load((ROOT / "experiments" / "paper.yaml").read_text(encoding="utf-8"))
    rows = [
        {
            "instruction": f"Name the number after {i}.",
            "input": "as a word" if i % 3 else "",
            "output": f"The number after {i} is {i + 1}, {'and so on, ' * (i % 5)}of course.",
        }
        for i in range(20)
    ]
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    value["dataset"]["path"] = str(folder / "data.json")
    for entry in [*value["scoring_models"], value["tuning"]["base_model"]]:
        entry["path"] = str(model)
    for entry in value["benchmarks"]:
        entry["path"] = str(benchmarks[entry["name"]])
    path = folder / "paper.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_papers_experiment_reaches_its_report(tmp_path, tiny_model_folder, request):
    benchmarks = {name: request.getfixturevalue(fixture) for name, fixture in _TASKS.items()}
    path = swapped(tmp_path, tiny_model_folder, benchmarks)
    outcome = run_experiment(path, tmp_path / "home")
    home = outcome.pipeline.home
    compared = json.loads((home.comparison / "comparison.json").read_text(encoding="utf-8"))
    assert set(compared["benchmarks"]) == {"MMLU", "BBH", "GSM", "TyDiQA", "CodeX"}
    answers = pq.read_table(home.evaluation("selectit", 1) / "AE.parquet").to_pylist()
    assert {row["status"] for row in answers} == {"not_judged"}
    assert all(row["output"] is not None and row["score"] is None for row in answers)
    report = (home.folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "random fifth" in report
