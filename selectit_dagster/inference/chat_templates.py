"""Chat templates rendered alike on every day: a fixed date, and the experiment's arguments."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.errors import UserError, first_line

if TYPE_CHECKING:
    from selectit_dagster.experiment import ModelReference

_NOW = re.compile(r"""strftime_now\(\s*(["'])([^"'\n]*)\1\s*\)""")
_SETTINGS = "selectit_template"
_PROBE = [{"role": "user", "content": "Say hello."}]
_ANSWERED = [*_PROBE, {"role": "assistant", "content": "Hello!"}]


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
