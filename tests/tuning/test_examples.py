"""What is trained, and what does not fit."""

from __future__ import annotations

import pytest

from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.tuning.examples import Template, build_examples, read_records, trained_text
from tests.tuning.conftest import sums

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
