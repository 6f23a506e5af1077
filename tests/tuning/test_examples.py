"""What is trained, and what does not fit."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer

from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.tuning.examples import Template, build_examples, read_records, trained_text
from selectit_dagster.tuning.tune import TuningRequest, tune
from tests.tuning.conftest import sums, write_selected

ALPACA = Template("alpaca")


def record(name: str, response: str, instruction: str = "Add.") -> dict[str, str]:
    return {"record_id": name, "instruction": instruction, "input": "", "response": response}


def test_records_that_do_not_fit_are_named_and_never_cut(tokenizer):
    records = [
        record("fits", "5"),
        record("long-response", "five " * 400),
        record("long-prompt", "5", instruction="Add. " * 400),
        record("blank", " \n"),
    ]
    examples, skipped = build_examples(records, tokenizer, ALPACA, 200)
    assert [example.record_id for example in examples] == ["fits"]
    reasons = {entry.record_id: entry.reason for entry in skipped}
    assert "prompt and response have" in reasons["long-response"]
    assert "the prompt alone has" in reasons["long-prompt"]
    assert reasons["blank"] == "the response is empty"
    assert len(examples) + len(skipped) == len(records)


def test_nothing_that_fits_is_refused_with_the_first_reason(tokenizer):
    with pytest.raises(
        UserError, match=r"none of the 2 selected records.*a, the response is empty"
    ):
        build_examples([record("a", ""), record("b", "")], tokenizer, ALPACA, 200)


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer):
    end, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        with pytest.raises(UserError, match="no end token"):
            build_examples(sums(1), tokenizer, ALPACA, 200)
    finally:
        tokenizer.eos_token = end


def test_the_trained_text_is_the_response_and_the_end_token(tokenizer):
    examples, _ = build_examples([record("a", "It is 5.")], tokenizer, ALPACA, 200)
    (shown,) = trained_text(examples, tokenizer)
    assert shown["trained"] == "It is 5.</s>"
    assert shown["prompt"].endswith("### Response:\n")


def test_a_folder_that_is_no_selected_dataset_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match=r"dataset\.parquet"):
        read_records(tmp_path)


def test_a_record_with_a_token_outside_the_model_is_named_and_not_trained(
    tiny_model_folder, settings, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["zyx"])
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    tokenizer.save_pretrained(base)
    assert tokenizer.pad_token_id >= AutoConfig.from_pretrained(base).vocab_size == size
    records = [*sums(9), {**sums(1)[0], "record_id": "rare", "response": "It is zyx."}]
    data = write_selected(tmp_path / "selected", records)
    section = settings(base_model={"path": str(base), "device": "cpu"}, max_steps=2)
    manifest = tune(TuningRequest(data, section, 1), tmp_path / "tuned")
    assert (manifest.counts["trained"], manifest.counts["skipped"]) == (9, 1)
    (skipped,) = (tmp_path / "tuned" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skipped)["record_id"] == "rare"
    assert f"token {size} is not in the model's vocabulary of {size}" in skipped


def test_an_end_token_outside_the_model_is_refused_before_anything_is_encoded(tokenizer):
    with pytest.raises(UserError, match="the model knows 1 tokens") as refused:
        build_examples(sums(1), tokenizer, ALPACA, 200, vocabulary=1)
    assert "resize the model's embeddings" in refused.value.hint
