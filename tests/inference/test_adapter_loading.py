"""An adapter's every weight lands, or it is refused; what runs is peft's own forward."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference.model_loading import load_model
from selectit_dagster.tuning.checkpoint import merge
from tests.inference.architectures import tiny_model

IDS = torch.tensor([[5, 9, 77, 130, 4, 66, 12, 40]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Callable[..., Path]:
    def make(kind: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        dtype = changes.pop("dtype", "float32")
        model = tiny_model(kind, **changes).to(getattr(torch, dtype))
        model.save_pretrained(folder)
        for file in tiny_model_folder.glob("*token*"):
            shutil.copy(file, folder)
        return folder

    return make


def adapter(folder: Path, out: Path, scale: float = 0.3, **settings: Any) -> Path:
    """Write a LoRA of random numbers, which change the logits plainly."""
    model = load_model(ModelReference(path=str(folder), device="cpu")).model
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)
    torch.manual_seed(3)
    tuned = get_peft_model(model, config)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, scale)
    tuned.save_pretrained(out)
    return out


def own_forward(folder: Path, lora: Path, dtype: str = "float32") -> torch.Tensor:
    reference = ModelReference(path=str(folder), device="cpu", dtype=dtype)
    tuned = PeftModel.from_pretrained(load_model(reference).model, lora).eval()
    with torch.no_grad():
        return tuned(IDS).logits.float()


def logits(path: Path, **more: Any) -> torch.Tensor:
    loaded = load_model(ModelReference(path=str(path), device="cpu", **more))
    with torch.no_grad():
        return loaded.model(IDS).logits.float()


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens", "q_proj"], "all-linear"])
def test_a_tied_model_answers_as_it_was_trained(
    base: Callable[..., Path], tmp_path: Path, targets: Any
) -> None:
    folder = base("llama", tie_word_embeddings=True)
    lora = adapter(folder, tmp_path / "lora", target_modules=targets)
    truth = own_forward(folder, lora)
    assert (truth - logits(folder)).abs().max() > 0.1
    assert (logits(folder, adapter=str(lora)) - truth).abs().max() < 1e-4
    merge(ModelReference(path=str(folder), device="cpu"), lora, tmp_path / "merged")
    assert (logits(tmp_path / "merged") - truth).abs().max() < 1e-4
    tied = json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
    assert tied == (targets == "all-linear")


def test_over_half_precision_an_adapter_keeps_its_whole_effect(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = base("llama", dtype="bfloat16")
    lora = adapter(folder, tmp_path / "lora", scale=0.004, target_modules="all-linear")
    found = logits(folder, adapter=str(lora), dtype="bfloat16")
    assert torch.equal(found, own_forward(folder, lora, "bfloat16"))


def test_merging_writes_the_bases_dtype_and_says_what_rounding_cost(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = base("llama", dtype="bfloat16")
    small = adapter(folder, tmp_path / "small", scale=0.004, target_modules="all-linear")
    large = adapter(folder, tmp_path / "large", scale=0.3, target_modules="all-linear")
    reference = ModelReference(path=str(folder), device="cpu")
    costs = []
    for lora in (small, large):
        manifest = merge(reference, lora, tmp_path / f"merged-{lora.name}")
        weights = load_file(tmp_path / f"merged-{lora.name}" / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        costs.append(manifest.details["rounding"])
        exact = load_model(ModelReference(path=str(folder), device="cpu", adapter=str(lora)))
        before, after = load_file(folder / "model.safetensors"), exact.model.state_dict()
        error = sum(float((weights[n].double() - after[n].double()).norm()) ** 2 for n in weights)
        change = sum(float((before[n].double() - after[n].double()).norm()) ** 2 for n in weights)
        assert costs[-1] == pytest.approx((error / change) ** 0.5, rel=1e-6)
    assert costs[0] > 0.3 > 0.05 > costs[1] > 0


def _rename(state: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("model.layers", "model.module.layers"): w for key, w in state.items()}


def _half(state: dict[str, Any]) -> dict[str, Any]:
    return {key: weight for key, weight in state.items() if ".layers.0." in key}


def _none(state: dict[str, Any]) -> dict[str, Any]:
    return {"other.weight": torch.zeros(2)}


@pytest.mark.parametrize("damage", [_rename, _half, _none])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_whose_weights_do_not_all_land_is_refused(
    base: Callable[..., Path], tmp_path: Path, damage: Callable[..., Any], dtype: str
) -> None:
    folder = base("llama")
    lora = adapter(folder, tmp_path / "lora", target_modules=["q_proj", "v_proj"])
    file = lora / "adapter_model.safetensors"
    save_file(damage(load_file(file)), file)
    with pytest.raises(UserError, match=r"weights do not land, the first is \S+\.") as refused:
        logits(folder, adapter=str(lora), dtype=dtype)
    assert str(lora) in refused.value.message


def test_an_adapter_that_adds_positions_is_refused_by_its_kind(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = base("llama")
    model = load_model(ModelReference(path=str(folder), device="cpu")).model
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(model, config).save_pretrained(tmp_path / "prefix")
    with pytest.raises(UserError, match="is of kind PREFIX_TUNING"):
        logits(folder, adapter=str(tmp_path / "prefix"))


def test_an_adapter_of_another_vocabulary_says_so(
    base: Callable[..., Path], tmp_path: Path
) -> None:
    small, large = base("llama"), base("llama", vocab_size=400)
    lora = adapter(large, tmp_path / "lora", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(UserError, match=r"size mismatch for .*embed_tokens") as refused:
        logits(small, adapter=str(lora))
    assert "merge_and_unload" in refused.value.hint
