"""Prompt templates: the text of a record up to where its response begins.

The same functions serve training, evaluation and chat, so that a model is always asked in
exactly the form in which it was tuned: the token ids of a prompt at inference are the prefix
of the token ids that were trained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.errors import UserError, first_line
from selectit_dagster.inference.tokenization import as_content, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selectit_dagster.experiment import ModelReference

_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
_MARK = "\ue000\ue001\ue000"
_FIELD = re.compile(r"\{(instruction|input)\}")
_NOW = re.compile(r"""strftime_now\(\s*(["'])([^"'\n]*)\1\s*\)""")
_SETTINGS = "selectit_template"
_PROBE = [{"role": "user", "content": "Say hello."}]
_ANSWERED = [*_PROBE, {"role": "assistant", "content": "Hello!"}]


@dataclass(frozen=True)
class Template:
    """A template's name, for ``custom`` its text, for ``chat`` what becomes of reasoning."""

    name: str = "alpaca"
    custom: str | None = None
    reasoning: str = "keep"


def render_prompt(
    template: str,
    instruction: str,
    input: str = "",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    custom: str | None = None,
) -> str:
    """Return the prompt's text, up to where the response begins.

    Parameters
    ----------
    template:
        ``alpaca``, ``chat`` (the tokenizer's own chat template) or ``custom``.
    instruction, input:
        The record's fields; ``input`` is empty when the record has none.
    tokenizer:
        Needed by ``chat``.
    custom:
        Needed by ``custom``: text with ``{instruction}`` and, if the record's input has a
        place of its own, ``{input}``; otherwise the input follows the instruction.

    Raises
    ------
    UserError
        When the tokenizer has no chat template, or the custom text has no ``{instruction}``.
    """
    if tokenizer is not None:
        instruction, input = as_content(tokenizer, instruction), as_content(tokenizer, input)
    if template == "chat":
        return _chat(tokenizer, _joined(instruction, input))
    if template == "alpaca":
        return _filled(_ALPACA_WITH_INPUT if input else _ALPACA, instruction, input)
    if not custom or "{instruction}" not in custom:
        raise UserError(
            f"template {template!r} needs a custom text with {{instruction}} in it",
            hint="set custom_template, or use template: alpaca or chat",
        )
    if "{input}" in custom:
        return _filled(custom, instruction, input)
    return _filled(custom, _joined(instruction, input), "")


def render_response(
    template: str,
    prompt: str,
    record: dict[str, str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    reasoning: str = "keep",
) -> str:
    """Return what follows ``prompt`` when the record's response is given.

    A chat template may put a blank before the response and an end-of-turn token after it;
    what it writes is what is trained. It is the bare response where the template's
    conversation does not begin with its own generation prompt. Some templates drop reasoning
    (``<think>`` to ``</think>``) from an answer: ``reasoning`` ``keep`` puts the response as it
    is in its place, ``drop`` trains what the template leaves.
    """
    if template != "chat":
        return record["response"]
    asked = _joined(record["instruction"], record["input"])
    whole = _applied(tokenizer, asked, record["response"])
    if reasoning == "keep" and loses_text(record["response"], whole[len(prompt) :]):
        # what the template writes around a response that it takes as it is
        before, found, after = _applied(tokenizer, asked, _MARK).partition(_MARK)
        if found:
            whole = before + record["response"].strip() + after
    # the line end after the turn would never be asked for
    return whole[len(prompt) :].rstrip() if whole.startswith(prompt) else record["response"]


def loses_text(response: str, rendered: str) -> bool:
    """Tell whether a chat template left something of the response out of the trained text."""
    return "".join(response.split()) not in "".join(rendered.split())


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, template: str) -> list[int]:
    """Return the prompt's token ids as the model is asked and was trained.

    The tokenizer adds its begin token, except where a chat template has written it already.
    """
    if template == "alpaca":  # it has no control token: all that are in it are the record's
        prompt = as_content(tokenizer, prompt)
    return without_end(tokenizer, encode(tokenizer, prompt, special=adds_special(template)))


def adds_special(template: str) -> bool:
    """Tell whether the tokenizer's own special tokens are added around a rendered prompt."""
    return template != "chat"


def without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Drop the end token that some tokenizers append by themselves: a prompt goes on."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _joined(instruction: str, further: str) -> str:
    return f"{instruction}\n{further}" if further else instruction


def _filled(text: str, instruction: str, further: str) -> str:
    # one pass, so that braces inside a record are never taken for a field
    values = {"instruction": instruction, "input": further}
    return _FIELD.sub(lambda match: values[match.group(1)], text)


def _chat(tokenizer: PreTrainedTokenizerBase | None, content: str) -> str:
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        raise UserError(
            f"{name} has no chat template", hint="use template: alpaca, or template: custom"
        )
    return _applied(tokenizer, content)


def _applied(tokenizer: Any, content: str, response: str | None = None) -> str:  # noqa: ANN401
    """Return the conversation in the tokenizer's template, up to or with the response."""
    turns = [{"role": "user", "content": content}]
    if response is not None:
        turns.append({"role": "assistant", "content": response})
    return render_chat(
        tokenizer,
        turns,
        answering=response is None,
        instead="use template: alpaca, or template: custom",
    )


# --- chat templates ----------------------------------------------------------------------


def remember_settings(tokenizer: Any, reference: ModelReference) -> None:  # noqa: ANN401
    """Let ``render_chat`` know the reference's date and arguments."""
    setattr(tokenizer, _SETTINGS, (reference.template_date, dict(reference.template_arguments)))


def render_chat(
    tokenizer: Any,  # noqa: ANN401 - any tokenizer of transformers
    turns: list[dict[str, str]],
    *,
    answering: bool,
    instead: str,
) -> str:
    """Return the conversation in the tokenizer's template.

    Parameters
    ----------
    tokenizer:
        From ``load_tokenizer``; another one gets the default date and no arguments.
    turns:
        Role and content of each turn.
    answering:
        Whether the text goes on to where the assistant's answer begins.
    instead:
        What the user can set when the template does not take the conversation.

    Raises
    ------
    UserError
        When the template refuses, or asks for today's date in a form that cannot be fixed.
    """
    from jinja2 import TemplateError

    day, arguments = getattr(tokenizer, _SETTINGS, None) or (date(2024, 7, 26), {})
    template = _NOW.sub(lambda now: repr(day.strftime(now.group(2))), tokenizer.get_chat_template())
    if re.search(r"strftime_now\s*\(", template):
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} asks for today's date in a form that "
            "cannot be fixed: its text would differ from day to day",
            hint=instead,
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=answering,
                chat_template=template,
                **arguments,
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} does not take one question and one "
            f"answer: {first_line(error)}",
            hint=instead,
        ) from error


def template_facts(reference: ModelReference) -> dict[str, str]:
    """Return what a fingerprint must say of the template, beside the tokenizer's files.

    That is the digest of a rendered probe where date or arguments change the text. Nothing
    elsewhere: an earlier version, which knew neither, rendered the same.
    """
    from selectit_dagster.inference.model_loading import load_tokenizer

    tokenizer = load_tokenizer(reference)
    template = getattr(tokenizer, "chat_template", None)
    if not template or not (reference.template_arguments or "strftime_now" in str(template)):
        return {}
    shown = [
        render_chat(tokenizer, turns, answering=answering, instead="use another template")
        for turns, answering in ((_PROBE, True), (_ANSWERED, False))
    ]
    return {"chat_template_probe": sha256_json(shown)}
