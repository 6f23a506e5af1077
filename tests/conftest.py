"""Fixtures shared by all tests: a tiny model, the optional real data, a kernel that confines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.ray_stand_in import RayHere

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# a developer's own place must not be written by tests
os.environ.pop("SELECTIT_STORAGE", None)

CORPUS = [
    "Below is an instruction that describes a task. Write a response.",
    "Instruction:What is the capital of France?\nResponse:Paris\nThe answer is: \n5",
    "Rate the reply on a scale of 1 to 5, and answer with a single digit.",
    "the quick brown fox jumps over the lazy dog 0123456789",
]


def make_tiny_model(folder: Path, *, layers: int = 2, hidden: int = 32, seed: int = 0) -> Path:
    """Write a random two-layer Llama and a byte-level tokenizer with single digits."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=512,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=hidden,
            intermediate_size=hidden * 2,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder, safe_serialization=True)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Llama with its tokenizer, in a local folder."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def second_tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random Llama: other weights, other size."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model-2"), hidden=48, seed=7)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets, tokenizers and models, where the developer has one."""
    folder = os.environ.get("SELECTIT_SHARED_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SELECTIT_SHARED_DATA does not name a folder of real data")
    return Path(folder)


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> RayHere:
    """A stand-in for Ray that runs everything in this process, whether Ray is installed or not."""
    made = RayHere()
    made.install(monkeypatch)
    return made


@pytest.fixture(scope="session")
def confined() -> None:
    """A kernel with all the layers of the sandbox; without it the test is skipped."""
    from selectit_dagster.evaluation.sandbox import run_program

    if not sys.platform.startswith("linux"):
        pytest.skip("the sandbox is for Linux")
    probe = run_program("pass", 20)
    if probe.missing:
        pytest.skip(f"this machine lacks {', '.join(probe.missing)}")
