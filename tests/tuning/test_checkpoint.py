"""A checkpoint loads, merges and answers; nothing else is taken for one."""

from __future__ import annotations

import pytest

from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.generation import Decoding
from selectit_dagster.inference.model_loading import load_model
from selectit_dagster.tuning.checkpoint import ask, load_checkpoint, merge, open_checkpoint
from selectit_dagster.tuning.examples import Template, build_examples
from selectit_dagster.tuning.tune import TuningRequest, tune
from tests.tuning.conftest import sums


@pytest.fixture(scope="module")
def base(tiny_model_folder):
    return ModelReference(path=str(tiny_model_folder), device="cpu")


@pytest.fixture(scope="module")
def checkpoint(selected, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("checkpoint")
    tune(TuningRequest(selected, settings(max_steps=6, dropout=0), 1), out)
    return out


@pytest.fixture(scope="module")
def adapted_logits(checkpoint, base, tokenizer):
    """The logits of the adapter beside the base model's weights, unmerged."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(base).model, checkpoint / "adapter").eval()
    examples, _ = build_examples(sums(4), tokenizer, Template("alpaca"), 256)
    ids = [torch.tensor([example.input_ids]) for example in examples]
    with torch.no_grad():
        return ids, [model(row).logits for row in ids]


def differ(model, adapted_logits) -> float:
    import torch

    with torch.no_grad():
        pairs = zip(*adapted_logits, strict=True)
        return max(float((model(row).logits - logits).abs().max()) for row, logits in pairs)


def test_a_loaded_checkpoint_has_the_adapters_logits(checkpoint, base, adapted_logits):
    assert differ(load_checkpoint(base, checkpoint).model, adapted_logits) < 1e-5
    # and the adapter does something
    assert differ(load_checkpoint(base, None).model, adapted_logits) > 1e-3


@pytest.mark.parametrize("bare", [False, True])
def test_a_merged_model_has_the_adapters_logits(checkpoint, base, adapted_logits, tmp_path, bare):
    source = checkpoint / "adapter" if bare else checkpoint
    manifest = merge(base if bare else None, source, tmp_path / "merged")
    assert manifest.counts["parameters"] > 0
    loaded = load_model(ModelReference(path=str(tmp_path / "merged"), device="cpu"))
    assert differ(loaded.model, adapted_logits) < 1e-5
    assert loaded.tokenizer.eos_token == "</s>"


def test_merging_never_overwrites(checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        merge(None, checkpoint, tmp_path)


def test_a_bare_adapter_needs_its_base_model(checkpoint, tmp_path):
    with pytest.raises(UserError, match="base model is not known"):
        merge(None, checkpoint / "adapter", tmp_path / "merged")


def test_a_folder_without_an_adapters_weights_is_refused(base, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"pickled")
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors") as refusal:
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert str(tmp_path / "adapter") in refusal.value.message
    assert "saved as safetensors" in refusal.value.hint
    assert not (tmp_path / "merged").exists()


def test_another_base_model_is_refused_by_identity(checkpoint, second_tiny_model_folder):
    other = ModelReference(path=str(second_tiny_model_folder), device="cpu")
    with pytest.raises(ArtefactError, match="tuned from another model") as caught:
        load_checkpoint(other, checkpoint)
    assert "stored identity" in caught.value.message


def test_a_full_checkpoint_loads_and_answers_as_it_was_asked(selected, settings, base, tmp_path):
    section = settings(
        method="full",
        epochs=30,
        learning_rate=5e-3,
        template="custom",
        custom_template="Q: {instruction} A:",
        max_steps=60,
    )
    tune(TuningRequest(selected, section, 1), tmp_path / "full")
    opened = open_checkpoint(tmp_path / "full")
    engine = Engine(load_checkpoint(base, tmp_path / "full"))
    assert ask(engine, opened, "Add 4 and 4.", Decoding(30)).startswith("That is")
    drawn = Decoding(8, temperature=5.0)
    sampled = {ask(engine, opened, "Add 4 and 4.", drawn, seed=seed) for seed in (1, 1, 2)}
    assert len(sampled) == 2
    with pytest.raises(UserError, match="and the model takes"):
        ask(engine, opened, "Add 4 and 4." * 200, drawn)


def test_a_folder_that_is_no_checkpoint_is_refused(selected, base, tmp_path):
    with pytest.raises(ArtefactError, match="no complete artefact"):
        load_checkpoint(base, tmp_path)
    with pytest.raises(ArtefactError, match="of kind selected"):
        load_checkpoint(base, selected)
