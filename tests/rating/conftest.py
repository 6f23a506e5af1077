"""A run of many small chunks, whose calibration and pictures stay out of the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from scoring_world import some_records, write_records

from selectit_dagster.rating import scoring, scoring_run


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let sixteen records make a chunk, draw nothing, and keep no calibration."""
    monkeypatch.setattr(scoring_run, "_CHUNK_RECORDS", (16, 16))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "draw", lambda *_: None)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Write sixty records of short texts."""
    return write_records(tmp_path / "records", some_records(60))
