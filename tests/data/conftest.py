"""Small ways to make datasets and to run the two stages on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.experiment import DatasetSection


class Workshop:
    """A folder in which datasets are made and read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.manifest: Manifest | None = None

    def write(self, name: str, content: bytes | str | list[Any]) -> Path:
        path = self.folder / name
        if isinstance(content, list):
            content = json.dumps(content, ensure_ascii=False)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def lines(self, name: str, records: list[Any]) -> Path:
        return self.write(name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))

    def read(self, path: Path | str, **options: Any) -> Manifest:
        section = DatasetSection(path=str(path), **{"max_reject_share": 1.0, **options})
        self.manifest = ingest(IngestRequest(section), self.out)
        return self.manifest

    @property
    def records(self) -> list[dict[str, Any]]:
        return pq.read_table(self.out / "records.parquet").to_pylist()

    @property
    def rejected(self) -> list[dict[str, Any]]:
        text = (self.out / "rejected.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """An empty folder for datasets."""
    return Workshop(tmp_path)


def alpaca(n: int, **more: Any) -> list[dict[str, Any]]:
    """Return n different records."""
    return [
        {"instruction": f"Say the number {i}.", "input": "", "output": f"It is {i}.", **more}
        for i in range(n)
    ]


@pytest.fixture
def make() -> Callable[..., list[dict[str, Any]]]:
    """Make n different Alpaca records."""
    return alpaca
