"""Loading models, and refusing those that cannot be trusted or are not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference import model_loading
from selectit_dagster.inference.model_identity import model_identity


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def test_loads_a_local_folder_for_inference(tiny_model_folder: Path) -> None:
    loaded = model_loading.load_model(ModelReference(path=str(tiny_model_folder), device="cpu"))
    assert loaded.dtype == "float32"
    assert loaded.device == "cpu"
    assert loaded.revision is None
    assert loaded.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("4", add_special_tokens=False)) == "4"


def test_training_mode_asks_for_gradients(tiny_model_folder: Path) -> None:
    reference = ModelReference(path=str(tiny_model_folder), device="cpu", dtype="bfloat16")
    loaded = model_loading.load_model(reference, training=True)
    assert loaded.model.training
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    assert all(p.requires_grad for p in loaded.model.parameters())


def test_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights are read from"):
        model_loading.load_model(ModelReference(path=str(tmp_path), device="cpu"))


def test_never_opens_a_pickle(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model_folder, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        model_loading.load_model(ModelReference(path=str(folder), device="cpu"))


def test_an_adapter_saved_as_a_pickle_is_refused_whatever_lies_beside_it(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    shutil.copy(tiny_model_folder / "model.safetensors", tmp_path / "optimizer.safetensors")
    reference = ModelReference(path=str(tiny_model_folder), adapter=str(tmp_path), device="cpu")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        model_loading.load_model(reference)


def test_refuses_weights_that_do_not_match_the_configuration(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model_folder, tmp_path / "deeper")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match="weights are missing"):
        model_loading.load_model(ModelReference(path=str(folder), device="cpu"))


def test_refuses_a_truncated_file(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model_folder, tmp_path / "cut")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        model_loading.load_model(ModelReference(path=str(folder), device="cpu"))


def test_an_adapter_is_merged_and_is_part_of_the_identity(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = model_loading.load_model(ModelReference(path=str(tiny_model_folder), device="cpu"))
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    tuned = get_peft_model(base.model, config).eval()
    rows = torch.arange(3, 15)[None]
    expected = tuned(rows).logits
    tuned.save_pretrained(tmp_path / "adapter")

    plain = ModelReference(path=str(tiny_model_folder), device="cpu")
    reference = plain.model_copy(update={"adapter": str(tmp_path / "adapter")})
    loaded = model_loading.load_model(reference)
    assert loaded.parameters == base.parameters
    torch.testing.assert_close(loaded.model(rows).logits, expected, atol=1e-5, rtol=1e-4)
    assert set(model_identity(reference)) == {*model_identity(plain), "adapter"}
    with pytest.raises(UserError, match="adapter"):
        model_loading.load_model(plain.model_copy(update={"adapter": str(tiny_model_folder)}))


def test_of_an_adapter_on_the_hub_no_pickle_is_fetched(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model

    plain = ModelReference(path=str(tiny_model_folder), device="cpu")
    model = model_loading.load_model(plain).model
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    asked = []

    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    on_hub = plain.model_copy(update={"adapter": "owner/adapter"})
    model_loading.load_model(on_hub)
    assert asked == [("owner/adapter", ["adapter_config.json", "adapter_model.safetensors"])]
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        model_loading.load_model(on_hub)


@pytest.mark.skipif(torch.cuda.is_available(), reason="onto a real GPU the tiny model fits")
def test_a_model_that_does_not_fit_onto_its_gpus_is_refused(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a GPU that is there and has no room: accelerate puts all layers onto the CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    reference = ModelReference(path=str(tiny_model_folder), device="cuda", dtype="float32")
    with pytest.raises(UserError, match=r"does not fit onto the GPUs .* went to cpu") as caught:
        model_loading.load_model(reference, device_map="auto")
    assert str(tiny_model_folder) in caught.value.message
    assert "ray.gpus_per_actor" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "limit", "context"),
    [
        ({"max_position_embeddings": 2048}, 10**30, 2048),
        ({"max_position_embeddings": 2048}, 512, 2048),  # left over from a training
        ({"max_position_embeddings": None, "max_seq_len": 4096}, 512, 4096),
        ({"text_config": {"max_position_embeddings": 8192}}, 10**30, 8192),
        ({}, 512, 512),
        ({}, 10**30, None),
    ],
)
def test_the_context_is_what_the_configuration_says_or_else_the_tokenizer(
    config: dict[str, Any], limit: int, context: int | None
) -> None:
    class Config(SimpleNamespace):
        def get_text_config(self) -> SimpleNamespace:
            text = getattr(self, "text_config", None)
            return self if text is None else SimpleNamespace(**text)

    tokenizer = SimpleNamespace(model_max_length=limit)
    assert model_loading.context_length(Config(**config), tokenizer) == context


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_the_context_of_real_configurations_is_found(kind: str) -> None:
    import transformers

    made = {
        "llama": lambda: transformers.LlamaConfig(max_position_embeddings=333),
        "gpt2": lambda: transformers.GPT2Config(n_positions=333),
        "gemma3": lambda: transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(max_position_embeddings=333)
        ),
    }[kind]()
    assert model_loading.context_length(made) == 333


def test_a_model_that_does_not_fit_onto_its_device_is_told_with_the_remedy(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 26.00 GiB")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(UserError, match="does not fit into the memory of cpu") as caught:
        model_loading.load_model(ModelReference(path=str(tiny_model_folder), device="cpu"))
    assert "smaller dtype" in caught.value.hint
    assert "causal" not in caught.value.hint


def saved(model: Any, folder: Path, tokenizer: Path) -> ModelReference:
    model.save_pretrained(folder)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    return ModelReference(path=str(folder), device="cpu")


@pytest.mark.parametrize(
    ("kind", "made", "message", "hint"),
    [
        ("llama", "LlamaModel", "saved without its output layer.*as a LlamaModel", "AutoModelFor"),
        ("llama", "LlamaForSequenceClassification", "gives classes", "was made from"),
        ("bart", "BartForConditionalGeneration", "is an encoder-decoder model", "decoder-only"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_by_what_it_is(
    tiny_model_folder: Path, tmp_path: Path, kind: str, made: str, message: str, hint: str
) -> None:
    import transformers

    from tests.inference.architectures import _config

    model = getattr(transformers, made)(_config(kind, {}))
    reference = saved(model, tmp_path / "model", tiny_model_folder)
    with pytest.raises(UserError, match=message) as refused:
        model_loading.load_model(reference)
    assert hint in refused.value.hint


def test_quantised_weights_that_cannot_be_read_are_named(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_model_folder, tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised with gptq") as refused:
        model_loading.load_model(ModelReference(path=str(folder), device="cpu"))
    assert "unquantised weights" in refused.value.hint
