"""A small selected dataset, and settings under which the tiny model trains in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.artefacts.manifest import write_manifest
from selectit_dagster.experiment import ModelReference, TuningSection

Record = dict[str, str]


def sums(count: int) -> list[Record]:
    return [
        {
            "record_id": f"r{number}",
            "instruction": f"Add {number} and {number % 7}.",
            "input": "Take your time. " * (number % 3),
            "response": f"That is {number + number % 7}. " * (1 + number % 4),
        }
        for number in range(count)
    ]


def write_selected(folder: Path, records: list[Record]) -> Path:
    import pyarrow as pa

    rows = [{**r, "rank": at + 1, "score": 1.0 / (at + 1)} for at, r in enumerate(records)]
    write_parquet(folder / "dataset.parquet", pa.Table.from_pylist(rows))
    write_manifest(folder, kind="selected", fingerprint={"made": "here"}, files=["dataset.parquet"])
    return folder


@pytest.fixture(scope="session")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A selected dataset of 44 records: five batches of 8 and an incomplete one."""
    return write_selected(tmp_path_factory.mktemp("selected"), sums(44))


@pytest.fixture(scope="session")
def settings(tiny_model_folder: Path) -> Callable[..., TuningSection]:
    def make(**changes: Any) -> TuningSection:
        values = {
            "base_model": ModelReference(path=str(tiny_model_folder), device="cpu"),
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "max_length": 256,
            "rank": 4,
            "checkpoint_every": 4,
        }
        return TuningSection.model_validate(values | changes)

    return make


@pytest.fixture(scope="session")
def tokenizer(tiny_model_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_folder)
