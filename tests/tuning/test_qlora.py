"""QLoRA on a CPU: 4-bit weights under trained adapters.

bitsandbytes is an extra, so these tests are skipped without it. To run them, use an
environment that has it: ``python -m pytest tests/tuning/test_qlora.py``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference.model_loading import load_model
from selectit_dagster.tuning.adapters import load_base, prepare
from selectit_dagster.tuning.checkpoint import load_checkpoint
from selectit_dagster.tuning.step_log import read_log
from selectit_dagster.tuning.tune import TuningRequest, tune
from tests.conftest import make_tiny_model

pytest.importorskip("bitsandbytes", reason="bitsandbytes, an extra, is not installed")


@pytest.fixture(scope="module")
def section(settings, tmp_path_factory):
    # blocks of 64 weights share a scale
    folder = make_tiny_model(tmp_path_factory.mktemp("model"), hidden=64)
    base = ModelReference(path=str(folder), device="cpu")
    return settings(base_model=base, method="qlora", checkpoint_every=4)


def test_the_base_weights_have_four_bits_and_the_adapters_are_trained(section):
    from bitsandbytes.nn import Linear4bit

    model = prepare(load_base(section, "cpu").model, section)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14
    assert all(str(layer.weight.dtype) == "torch.uint8" for layer in layers)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_base_that_lacks_weights_is_refused_in_four_bits_too(section, tmp_path):
    source = Path(section.base_model.path)
    folder = shutil.copytree(source, tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base = section.base_model.model_copy(update={"path": str(folder)})
    with pytest.raises(UserError, match=r"1 weights are missing .*up_proj"):
        load_base(section.model_copy(update={"base_model": base}), "cpu")


def test_a_killed_run_resumes_to_the_same_bytes_and_loads_over_the_base(
    section, selected, tmp_path
):
    class StopError(Exception):
        pass

    class Stop:
        def update(self, done: int, total: int, **figures: float) -> None:
            if done == 6:
                raise StopError

    whole = tune(TuningRequest(selected, section, 1), tmp_path / "whole")
    log = read_log(tmp_path / "whole" / "log.jsonl")
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    with pytest.raises(StopError):
        tune(TuningRequest(selected, section, 1), tmp_path / "killed", Stop())
    again = tune(TuningRequest(selected, section, 1), tmp_path / "killed")
    assert again.details["resumed_at_step"] == 4
    assert again.digest == whole.digest
    base = load_model(section.base_model)
    assert whole.details["parameters"] > base.parameters
    tuned = load_checkpoint(section.base_model, tmp_path / "whole")
    assert tuned.parameters == base.parameters
