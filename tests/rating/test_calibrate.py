"""The batch size: as asked, as remembered, measured where it is worth it, or the usual one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from scoring_world import HashedBackend, request_for, some_records, write_records
from transformers import AutoTokenizer

from selectit_dagster.inference.backends.protocol import TokenBatch
from selectit_dagster.rating import calibration
from selectit_dagster.rating.rating_tokens import Encoder
from selectit_dagster.rating.token_rows import RowMaker


class LikesBigBatches(HashedBackend):
    """Takes the same time for any batch, until it is full."""

    def rate_rows(self, batch: TokenBatch):
        time.sleep(0.01)
        if batch.positions > 600:
            raise MemoryError
        return super().rate_rows(batch)


@pytest.fixture
def chosen(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records = write_records(tmp_path / "records", some_records(100))

    def choose(**rating: object) -> int:
        request = request_for(records, tiny_model_folder, **{"max_batch_tokens": None, **rating})
        rows = RowMaker(
            Encoder(AutoTokenizer.from_pretrained(tiny_model_folder)), request.prompts()
        )
        return calibration.batch_tokens(request, rows, LikesBigBatches(), 100)

    return choose


def test_a_short_run_takes_the_usual_size(chosen) -> None:
    assert chosen() == 256
    assert chosen(max_batch_tokens=77) == 77


def test_a_long_run_measures_once_and_remembers(chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_WORTH_SECONDS", 0.0)
    monkeypatch.setattr(calibration, "_FEWEST_BATCHES", 1)
    assert chosen() == 512

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(calibration, "_measure", refuse)
    assert chosen() == 512
