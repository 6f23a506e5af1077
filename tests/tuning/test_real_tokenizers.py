"""Real vocabularies: what is trained reads back as the response, after the prompt's own ids."""

from __future__ import annotations

import json

import pytest

from selectit_dagster.inference.prompt_templates import encode_prompt, render_prompt
from selectit_dagster.tuning.examples import Template, build_examples

AWKWARD = ["\n\nTwo lines on.", "  indented", "¿Qué? 你好", "1, 2, 3", "\tdef f():\n\treturn 1"]


@pytest.mark.parametrize("name", ["llama2", "gpt2", "qwen2"])
def test_the_response_is_trained_whole_after_the_prompts_own_ids(shared_data, name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
    source = json.loads((shared_data / "instruct" / "alpaca_gpt4_999.json").read_text())
    records = [
        {
            "record_id": str(number),
            "instruction": row["instruction"],
            "input": row["input"],
            "response": row["output"],
        }
        for number, row in enumerate(source[:200])
    ]
    records += [
        {"record_id": text, "instruction": "Write.", "input": "", "response": text}
        for text in AWKWARD
    ]
    examples, skipped = build_examples(records, tokenizer, Template("alpaca"), 4096)
    # a record without a response is named; none is lost
    assert len(examples) + len(skipped) == len(records)
    responses = {record["record_id"]: record for record in records}
    for example in examples:
        record = responses[example.record_id]
        prompt = render_prompt("alpaca", record["instruction"], record["input"])
        prefix = encode_prompt(tokenizer, prompt, "alpaca")
        assert example.input_ids[: example.prompt_length] == prefix
        assert example.input_ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(example.input_ids[:-1], clean_up_tokenization_spaces=False)
        assert text.endswith(prompt[-20:] + record["response"])
