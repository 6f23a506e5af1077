"""A tokenizer's class against its ``tokenizer.json``: where they differ, the file is right.

Since transformers 5 some classes (``GPT2Tokenizer`` and others) build their own pre-tokenizer and
drop the one in the file, so that digits or spaces are cut otherwise than in the model's training.
"""

from __future__ import annotations

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
