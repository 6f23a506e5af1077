"""A chat template gives the same text on every day, with the experiment's arguments."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference.model_loading import load_tokenizer
from selectit_dagster.inference.prompt_templates import render_chat, template_facts
from selectit_dagster.rating.rating_tokens import Encoder

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
# as Llama 3.1 and gpt-oss ask for the day
DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = 'old' %}"
    '{% endif %}{% endif %}Today: {{ date_string }} {{ strftime_now("%Y-%m-%d") }}' + TURNS
)
# as Qwen3 lets a model think
THINKING = TURNS + (
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and "
    "enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello."}]


@pytest.fixture
def reference(tiny_model_folder: Path, tmp_path: Path) -> Any:
    def make(template: str, **settings: Any) -> ModelReference:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model_folder, folder, dirs_exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return ModelReference(path=str(folder), device="cpu", **settings)

    return make


def rendered(reference: ModelReference) -> str:
    return render_chat(load_tokenizer(reference), HELLO, answering=True, instead="-")


def test_the_date_is_the_experiments_and_not_todays(reference: Any) -> None:
    assert rendered(reference(DATED)) == "Today: 26 Jul 2024 2024-07-26[user]Hello."
    given = reference(DATED, template_date="2025-02-03")
    assert given.template_date == date(2025, 2, 3)
    assert rendered(given) == "Today: 03 Feb 2025 2025-02-03[user]Hello."
    encoder = Encoder(load_tokenizer(given), chat_template=True)
    assert encoder.wrap("a", "b") == ("Today: 03 Feb 2025 2025-02-03[user]a", "b")


def test_arguments_reach_the_template_and_the_fingerprint(reference: Any) -> None:
    plain = reference(THINKING)
    assert rendered(plain).endswith("[assistant]")
    assert template_facts(plain) == {}
    quiet = reference(THINKING, template_arguments={"enable_thinking": False})
    assert rendered(quiet).endswith("[assistant]<think></think>")
    assert template_facts(quiet) != {}
    assert template_facts(reference(DATED)) != template_facts(
        reference(DATED, template_date="2025-02-03")
    )


def test_settings_at_their_defaults_are_left_out_as_before_they_were() -> None:
    plain = ModelReference(path="m").model_dump(mode="json")
    assert not any(name.startswith("template") for name in plain)
    given = ModelReference(path="m", template_arguments={"a": 1}).model_dump(mode="json")
    assert given["template_arguments"] == {"a": 1}
    assert ModelReference.model_validate(given).template_arguments == {"a": 1}


def test_a_template_whose_date_cannot_be_fixed_is_refused(reference: Any) -> None:
    with pytest.raises(UserError, match="differ from day to day"):
        rendered(reference("{% set f = '%d' %}{{ strftime_now(f) }}" + TURNS))
