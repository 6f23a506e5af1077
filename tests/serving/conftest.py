"""A real vLLM in an environment of its own, and a model and records to try it with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
RECORDS = 200


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter of an environment with vLLM; `make test-vllm` makes one."""
    found = os.environ.get("SELECTIT_VLLM_PYTHON")
    if not found:
        pytest.skip("SELECTIT_VLLM_PYTHON names no environment with vLLM")
    return found


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 16 million parameters: wide enough that the engine is what takes time."""
    return make_tiny_model(tmp_path_factory.mktemp("model"), layers=6, hidden=512, seed=3)


@pytest.fixture(scope="session")
def texts() -> list[dict[str, str]]:
    """Records that people wrote, where they are, else the project's own."""
    real = Path(os.environ.get("SELECTIT_SHARED_DATA", "-")) / "instruct" / "alpaca_gpt4_999.json"
    if real.is_file():
        found = json.loads(real.read_text(encoding="utf-8"))
    else:
        own = ROOT / "selectit_dagster" / "miniature" / "data" / "pool.jsonl"
        found = [json.loads(line) for line in own.read_text(encoding="utf-8").splitlines()]
    rows = [
        {
            "record_id": f"r{i}",
            "instruction": row["instruction"],
            "input": row.get("input") or "",
            # the model's tokenizer makes about a token a letter, and 512 fit
            "response": row["output"][:60],
        }
        for i, row in enumerate(found)
        if len(row["instruction"]) + len(row.get("input") or "") < 120
    ]
    assert len(rows) >= RECORDS
    return rows[:RECORDS]
