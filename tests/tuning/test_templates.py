"""Prompts are asked as they are trained."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from selectit_dagster.errors import UserError
from selectit_dagster.inference.prompt_templates import encode_prompt, render_prompt
from selectit_dagster.tuning.examples import Template, build_examples

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def test_the_alpaca_template_is_the_published_text():
    assert render_prompt("alpaca", "Add.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )
    assert render_prompt("alpaca", "Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )


def test_braces_in_a_record_are_never_taken_for_a_field():
    text = render_prompt("custom", "say {input}", "{instruction}", custom="{instruction}|{input}|")
    assert text == "say {input}|{instruction}|"


def test_a_custom_template_without_a_place_for_the_input_keeps_the_input():
    assert render_prompt("custom", "Add.", "1 2", custom="Q: {instruction}\nA: ") == (
        "Q: Add.\n1 2\nA: "
    )


def test_the_chat_template_is_the_models_own(tokenizer):
    tokenizer.chat_template = CHAT
    try:
        text = render_prompt("chat", "Add.", "1 2", tokenizer=tokenizer)
        assert text == "<s>user: Add.\n1 2</s><s>assistant: "
        # the template wrote the special tokens already, so none is added
        assert encode_prompt(tokenizer, text, "chat").count(tokenizer.bos_token_id) == 2
    finally:
        tokenizer.chat_template = None


ENDS = [
    # as written by Qwen (its turn ends with the end token), Llama 2 (a blank before the
    # response) and Gemma (a turn's end that is not the end token)
    ("{{ m['content'] }}</s>\n", "4</s>"),
    ("{{ ' ' + m['content'] + ' ' }}</s>", " 4 </s>"),
    ("{{ m['content'] | trim }}<pad>\n", "4<pad></s>"),
    ("{{ m['content'] }}", "4</s>"),
]


@pytest.mark.parametrize(("written", "trained"), ENDS)
def test_a_chat_template_decides_what_is_trained_around_the_response(tokenizer, written, trained):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }} A:"
        "{% else %}" + written + "{% endif %}{% endfor %}"
    )
    record = {"record_id": "a", "instruction": "2+2?", "input": "", "response": "4"}
    try:
        (example,), _ = build_examples([record], tokenizer, Template("chat"), 200)
        prompt = encode_prompt(tokenizer, "Q: 2+2? A:", "chat")
    finally:
        tokenizer.chat_template = None
    assert example.input_ids[: example.prompt_length] == prompt
    assert tokenizer.decode(example.input_ids[example.prompt_length :]) == trained
    assert example.input_ids.count(tokenizer.eos_token_id) == 1


def test_a_chat_template_that_refuses_the_conversation_is_the_users_matter(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('a system turn must come first') }}"
    try:
        with pytest.raises(UserError, match="a system turn must come first"):
            render_prompt("chat", "Add.", tokenizer=tokenizer)
    finally:
        tokenizer.chat_template = None


@pytest.mark.parametrize(("template", "custom"), [("chat", None), ("custom", "no field")])
def test_a_template_that_cannot_be_filled_is_refused(tokenizer, template, custom):
    with pytest.raises(UserError, match=r"no chat template|custom text"):
        render_prompt(template, "Add.", tokenizer=tokenizer, custom=custom)


@given(
    instruction=st.text(max_size=40),
    further=st.text(max_size=10),
    response=st.text(min_size=1, max_size=40),
)
@limits(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_prompt_at_inference_is_the_trained_prefix(tokenizer, instruction, further, response):
    record = {
        "record_id": "r",
        "instruction": instruction,
        "input": further,
        "response": response,
    }
    prompt = encode_prompt(tokenizer, render_prompt("alpaca", instruction, further), "alpaca")
    try:
        (example,), _ = build_examples([record], tokenizer, Template("alpaca"), 100_000)
    except UserError:
        assert not response.strip()
        return
    assert example.input_ids[: example.prompt_length] == prompt
    assert example.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.input_ids[example.prompt_length : -1]) == response


# as DeepSeek-R1's and Qwen3's own templates do
DROPS_REASONING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }} A:{% else %}"
    "{{ m['content'].split('</think>')[-1].strip() }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("reasoning", "trained"),
    [("keep", "<think>\n2 and 2\n</think>\n\nIt is 4.</s>"), ("drop", "It is 4.</s>")],
)
def test_reasoning_that_a_template_drops_is_kept_or_counted(tokenizer, reasoning, trained):
    response = "<think>\n2 and 2\n</think>\n\nIt is 4."
    records = [
        {"record_id": "thinks", "instruction": "2+2?", "input": "", "response": response},
        {"record_id": "plain", "instruction": "2+2?", "input": "", "response": "It is 4."},
    ]
    tokenizer.chat_template = DROPS_REASONING
    try:
        template = Template("chat", reasoning=reasoning)
        (thinks, plain), _ = build_examples(records, tokenizer, template, 400)
    finally:
        tokenizer.chat_template = None
    assert tokenizer.decode(thinks.input_ids[thinks.prompt_length :]) == trained
    assert tokenizer.decode(plain.input_ids[plain.prompt_length :]) == "It is 4.</s>"
    assert (thinks.lost_text, plain.lost_text) == (reasoning == "drop", False)


@pytest.mark.parametrize("response", ["\n4", "\n\n4", " \n 4", "\t4\n"])
def test_the_end_token_is_trained_once_whatever_a_response_begins_with(tokenizer, response):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }} A:\n"
        "{% else %}{{ m['content'] }}</s>\n{% endif %}{% endfor %}"
    )
    record = {"record_id": "a", "instruction": "2+2?", "input": "", "response": response}
    try:
        (example,), _ = build_examples([record], tokenizer, Template("chat"), 200)
    finally:
        tokenizer.chat_template = None
    assert example.input_ids.count(tokenizer.eos_token_id) == 1
    assert example.input_ids[-1] == tokenizer.eos_token_id
