"""Architectures tuned, evaluated and merged, each against peft's own forward."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference.model_loading import load_model
from selectit_dagster.tuning.adapters import tuning_facts
from selectit_dagster.tuning.checkpoint import load_checkpoint, merge
from selectit_dagster.tuning.tune import TuningRequest, tune
from tests.inference.architectures import tiny_model

IDS = torch.tensor([[5, 9, 77, 130, 4, 66, 12, 40]])
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
STACKED = {"experts.gate_up_proj", "experts.down_proj"}


def written(kind: str, folder: Path, tokenizer: Path, **changes: Any) -> ModelReference:
    tiny_model(kind, spread=0.1, **changes).save_pretrained(folder)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    return ModelReference(path=str(folder), device="cpu")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize(
    ("kind", "more", "weights"),
    [
        ("mixtral", {}, STACKED),
        ("qwen3_moe", {}, STACKED),
        ("gpt_oss", {}, STACKED),
        ("granitemoe", {}, STACKED),
        ("llama4_text", {}, {*STACKED, "gate_proj.weight", "up_proj.weight", "down_proj.weight"}),
        ("gpt2", {}, set()),
        ("llama", {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, set()),
        pytest.param("qwen3_next", {}, STACKED, marks=pytest.mark.slow),
        pytest.param("deepseek_v3", {}, STACKED, marks=pytest.mark.slow),
        pytest.param("phimoe", {}, STACKED, marks=pytest.mark.slow),
        pytest.param("jetmoe", {}, {"input_linear.weight"}, marks=pytest.mark.slow),
    ],
)
def test_what_is_tuned_is_what_is_evaluated_and_merged(
    selected, settings, tiny_model_folder, tmp_path, kind, more, weights
):
    tied = {"tie_word_embeddings": True} if kind == "llama" else {}
    base = written(kind, tmp_path / "base", tiny_model_folder, **tied)
    section = settings(base_model=base, max_steps=3, **more)
    facts = tuning_facts(section)
    manifest = tune(TuningRequest(selected, section, 1), tmp_path / "tuned")
    assert weights <= set(manifest.details.get("target_parameters", ()))
    for name in ("target_modules", "target_parameters", "trainable_parameters", "dropout"):
        assert facts.get(name) == manifest.details.get(name)

    adapter = tmp_path / "tuned" / "adapter"
    before = load_model(base).model
    plain = logits(before)
    truth = logits(PeftModel.from_pretrained(before, adapter))
    assert (truth - plain).abs().max() > 1e-3
    assert (logits(load_checkpoint(base, tmp_path / "tuned").model) - truth).abs().max() < 1e-4
    merge(None, tmp_path / "tuned", tmp_path / "merged")
    merged = load_model(ModelReference(path=str(tmp_path / "merged"), device="cpu"))
    assert (logits(merged.model) - truth).abs().max() < 1e-4


def test_every_expert_is_trained_and_no_router_is(selected, settings, tiny_model_folder, tmp_path):
    from safetensors.torch import load_file

    base = written("mixtral", tmp_path / "base", tiny_model_folder)
    tune(TuningRequest(selected, settings(base_model=base, max_steps=3), 1), tmp_path / "tuned")
    trained = load_file(tmp_path / "tuned" / "adapter" / "adapter_model.safetensors")
    second = {name: w for name, w in trained.items() if "lora_B" in name}
    assert all(bool(w.abs().sum() > 0) for w in second.values())
    assert any("experts" in name for name in second)
    assert not any("gate.lora" in name for name in second)


def test_modules_that_the_model_lacks_are_found_without_its_weights(
    settings, tiny_model_folder, tmp_path
):
    base = written("mixtral", tmp_path / "base", tiny_model_folder)
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="c_attn") as refused:
        tuning_facts(settings(base_model=base, target_modules=["c_attn"]))
    assert "q_proj" in refused.value.hint
