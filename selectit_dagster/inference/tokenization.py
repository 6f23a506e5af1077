"""How texts become tokens: the tokenizer's own file rules, and special tokens in a record are text.

Since transformers 5 some tokenizer classes (``GPT2Tokenizer`` and others) build their own
pre-tokenizer and drop the one in ``tokenizer.json``, so that digits or spaces are cut otherwise
than in the model's training: where class and file differ, the file is right.

Special tokens inside a record's text are content: split like other text, never control. A text
that is put into a template carries a mark inside each special token of its own. Only the
template's tokens are then read as control; the marks are gone from what is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json
from selectit_dagster.errors import UserError
from selectit_dagster.inference.model_identity import commit_of, is_local

if TYPE_CHECKING:
    from selectit_dagster.experiment import ModelReference

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
# they read the file as it is
_PLAIN = (None, "PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")
_SAMPLED = 2000
_PROBES = (
    "Rate from 1 to 5.\n\nInstruction:Add 12 and 345678.\nResponse:3.14\nThe answer is: \n1",
    "def f(x):\n    return x  # it's\tthe  end\n\n\n",
    "We'll don't I'M camelCase snake_case 1st 2nd 10,000.00 $5 50% e-mail@x.org http://a.b/c?d=1",
    " leading, trailing \r\n 日本語 текст ñandú é\u0301 😀 \u00a0x",
)
# a private-use character, which no tokenizer meets: it is taken out before
MARK = "\ue002"
_KNOWN = "selectit_control"


# --- the tokenizer's file ------------------------------------------------------------------


def names_a_class(reference: ModelReference) -> bool:
    """Tell whether the tokenizer names a class that may not follow its file; loads nothing."""
    config = _path(reference, _CONFIG)
    try:
        named = read_json(config).get("tokenizer_class") if config is not None else None
    except UserError:  # loading it gives the message
        return False
    return named not in _PLAIN and _path(reference, _FILE) is not None


def reads_file_otherwise(reference: ModelReference, tokenizer: Any = None) -> bool:  # noqa: ANN401
    """Tell whether the tokenizer's class makes other tokens than its file on probe texts.

    Parameters
    ----------
    reference:
        The model.
    tokenizer:
        As its class makes it; loaded where it is not given.
    """
    if not names_a_class(reference) or reference.trust_remote_code:
        return False
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    path = _path(reference, _FILE)
    try:
        file = Tokenizer.from_file(str(path))
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent)) if path else None
    except Exception:
        return False
    if tokenizer is None or not tokenizer.is_fast:
        return False
    words = sorted(file.get_vocab())[:: max(1, file.get_vocab_size() // _SAMPLED)]
    # words of the vocabulary side by side meet merges that the other probes do not
    made_up = tokenizer.convert_tokens_to_string(words)
    return any(
        file.encode(text, add_special_tokens=False).ids
        != tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for text in (*_PROBES, made_up)
    )


def _path(reference: ModelReference, name: str) -> Path | None:
    """Return the path of one of the tokenizer's files, None where it has none."""
    if is_local(reference):
        path = Path(reference.path).expanduser() / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(reference.path, name, revision=commit_of(reference)))
    except (OSError, ValueError):
        return None


# --- special tokens ----------------------------------------------------------------------


def control_tokens(tokenizer: Any) -> re.Pattern[str] | None:  # noqa: ANN401
    """Return what finds the tokenizer's special tokens in a text; None where it has none."""
    known = getattr(tokenizer, _KNOWN, None)
    count = len(tokenizer)
    if known is None or known[0] != count:
        decoder = getattr(tokenizer, "added_tokens_decoder", {})
        names = {str(token) for token in tokenizer.all_special_tokens}
        names |= {str(token) for token in decoder.values() if token.special}
        longest = sorted(filter(None, names), key=len, reverse=True)
        known = (count, re.compile("|".join(map(re.escape, longest))) if longest else None)
        setattr(tokenizer, _KNOWN, known)
    return known[1]


def as_content(tokenizer: Any, text: str) -> str:  # noqa: ANN401
    """Return ``text`` with a mark inside each special token that is written in it."""
    control = control_tokens(tokenizer)
    if control is None or not control.search(text):
        return text
    return control.sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", text)


def encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:  # noqa: ANN401
    """Return the token ids of a text whose marked special tokens are content.

    Parameters
    ----------
    tokenizer:
        Any tokenizer of transformers.
    text:
        With marks from ``as_content``, or without any.
    special:
        Whether the tokenizer adds its own special tokens around the text.
    """

    def ids(part: str, *, split: bool = False, add: bool = False) -> list[int]:
        more = {"split_special_tokens": True} if split else {}
        found: list[int] = tokenizer(part, add_special_tokens=add, verbose=False, **more)[
            "input_ids"
        ]
        return found

    control = control_tokens(tokenizer)
    if MARK not in text or control is None:
        return ids(text, add=special)
    if not control.search(text):  # no control at all: one piece, without seams
        return ids(_unmarked(control, text), split=True, add=special)
    found: list[int] = []
    for number, part in enumerate(_pieces(control, text)):
        content = number % 2 == 1
        if part or number == 0:
            found += ids(part, split=content, add=special and number == 0)
        if number == 0 and special and found and found[-1] == tokenizer.eos_token_id:
            found.pop()
    return found


def encode_all(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:  # noqa: ANN401
    """Return what :func:`encode` gives for each text; those without marks go all at once."""
    rows: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    for at, text in enumerate(texts):
        if MARK in text:
            rows[at] = encode(tokenizer, text, special=special)
    return rows


def _pieces(control: re.Pattern[str], text: str) -> list[str]:
    """Return other text and marked special tokens (without their marks), in turn."""
    pieces, end = [""], 0
    for mark in re.finditer(MARK, text):
        found = control.match(text[mark.start() - 1 : mark.start()] + text[mark.end() :])
        if mark.start() > end and found:
            pieces[-1] += text[end : mark.start() - 1]
            pieces += [found[0], ""]
            end = mark.start() + len(found[0])
    pieces[-1] += text[end:]
    return pieces


def _unmarked(control: re.Pattern[str], text: str) -> str:
    return "".join(_pieces(control, text))
