"""What a model is known by: its content, whatever its path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference import model_identity as module
from selectit_dagster.inference.model_identity import hash_files, inference_identity, model_identity


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_identity_follows_the_content_and_not_the_path(
    tiny_model_folder: Path, second_tiny_model_folder: Path, tmp_path: Path
) -> None:
    identity = model_identity(ModelReference(path=str(tiny_model_folder)))
    moved = Path(shutil.copytree(tiny_model_folder, tmp_path / "moved"))
    assert model_identity(ModelReference(path=str(moved))) == identity
    other = model_identity(ModelReference(path=str(second_tiny_model_folder)))
    assert other["weights"] != identity["weights"]
    assert other["tokenizer"] == identity["tokenizer"]
    (moved / "README.md").write_text("a note")
    assert model_identity(ModelReference(path=str(moved))) == identity
    config = json.loads((moved / "tokenizer_config.json").read_text())
    (moved / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 9}))
    assert model_identity(ModelReference(path=str(moved)))["tokenizer"] != identity["tokenizer"]


def test_hash_of_a_big_file_is_remembered_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * (1 << 20))
    monkeypatch.setattr(module, "_RACY_SECONDS", -1.0)
    first = hash_files(tmp_path, ("*.safetensors",))

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "sha256_file", refuse)
        assert hash_files(tmp_path, ("*.safetensors",)) == first
    path.write_bytes(b"b" * (1 << 20))
    assert hash_files(tmp_path, ("*.safetensors",)) != first


def test_refuses_what_is_neither_a_folder_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="model 'no/where' is no local file or folder"):
        model_identity(ModelReference(path="no/where"))


@pytest.mark.parametrize(
    ("config", "marks"),
    [
        ({"model_type": "llama"}, (False, False)),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, (False, False)),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope", "long_factor": [1]},
          "original_max_position_embeddings": 4096}, (True, True)),
        ({"model_type": "llama", "max_position_embeddings": 2048,
          "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, (True, True)),
        ({"model_type": "mamba"}, (False, True)),
        ({"model_type": "mpt"}, (False, True)),
    ],
)  # fmt: skip
def test_only_models_that_were_run_wrongly_before_are_run_again(tmp_path, config, marks):
    (tmp_path / "config.json").write_text(json.dumps(config))
    reference = ModelReference(path=str(tmp_path))
    assert inference_identity(reference).get("inference") == ("2" if marks[0] else None)
    found = inference_identity(reference, generates=True)
    assert found.get("inference") == ("2" if marks[1] else None)
    assert {k: v for k, v in found.items() if k != "inference"} == model_identity(reference)
