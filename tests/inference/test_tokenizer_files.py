"""A tokenizer whose class drops what its file says is read as the file says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference.model_identity import model_identity
from selectit_dagster.inference.model_loading import load_tokenizer

NUMBERS = [f"{n} {n * 37} {n * n * 11} the cat's  sat" for n in range(10, 400)]


def folder_with(folder: Path, pre_tokenizer: object, class_name: str, model: Path) -> Path:
    shutil.copytree(model, folder)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    made.train_from_iterator(
        NUMBERS,
        trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet),
    )
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=special[0])
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = class_name
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# without a regular expression merges cross words, which the class's own would not allow
WHOLE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_where_class_and_file_differ_the_file_is_read_and_the_identity_says_so(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "model", WHOLE, "GPT2Tokenizer", tiny_model_folder)
    text = "12 444 the cat's  sat"
    file = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] != file
    reference = ModelReference(path=str(folder), device="cpu")
    found = load_tokenizer(reference)
    assert found(text)["input_ids"] == file
    assert found.eos_token == "<|endoftext|>"
    for _ in range(2):  # found out, then remembered
        assert model_identity(reference)["tokenizer_read_from"] == "tokenizer.json"


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"), [(GPT2, "GPT2Tokenizer"), (WHOLE, "PreTrainedTokenizerFast")]
)
def test_where_they_agree_nothing_changes(
    tiny_model_folder: Path, tmp_path: Path, pre_tokenizer: object, name: str
) -> None:
    folder = folder_with(tmp_path / "model", pre_tokenizer, name, tiny_model_folder)
    reference = ModelReference(path=str(folder), device="cpu")
    assert type(load_tokenizer(reference)) is type(AutoTokenizer.from_pretrained(folder))
    assert "tokenizer_read_from" not in model_identity(reference)
