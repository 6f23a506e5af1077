"""Doctor finds what tuning would refuse, before anything is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from selectit_dagster.cli.doctor_command import doctor_command


@pytest.mark.parametrize(("targets", "ok"), [(None, True), (["q_proj"], True), (["c_attn"], False)])
def test_doctor_tries_the_adapter_on_the_base_model(
    tiny_model_folder: Path, tmp_path: Path, targets: list[str] | None, ok: bool
) -> None:
    (tmp_path / "data.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    (tmp_path / "questions.jsonl").write_text(json.dumps({"instruction": "a", "answer": "b"}))
    model = {"path": str(tiny_model_folder), "device": "cpu"}
    experiment = {
        "name": "tried",
        "dataset": {"path": "data.json"},
        "scoring_models": [{"name": "tiny", **model}],
        "selection": {"arms": [{"kind": "selectit"}, {"kind": "random", "seeds": [1]}]},
        "tuning": {"base_model": model, "target_modules": targets},
        "benchmarks": [{"name": "asked", "task": "exact-match", "path": "questions.jsonl"}],
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(experiment))
    found = CliRunner().invoke(
        doctor_command, [str(tmp_path / "one.yaml"), "--home", str(tmp_path / "home"), "--json"]
    )
    assert found.exit_code == (0 if ok else 2), found.output
    tuning = json.loads(found.stdout)["tuning"]
    assert tuning["ok"] is ok
    if ok:
        assert tuning["trainable_parameters"] > 0
        assert "q_proj" in tuning["target_modules"]
    else:
        assert "c_attn" in tuning["problems"][0]
