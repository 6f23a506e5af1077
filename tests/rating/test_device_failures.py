"""A device that breaks ends the stage and keeps what came before; a bad row costs that row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scoring_world import HashedBackend, request_for

from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.inference.backends.protocol import TokenBatch
from selectit_dagster.inference.backends.transformers import TransformersBackend
from selectit_dagster.inference.failures import RowRetries
from selectit_dagster.inference.model_loading import load_model
from selectit_dagster.rating.score_store import FAILED, OK, read_scores
from selectit_dagster.rating.scoring import score

pytestmark = pytest.mark.usefixtures("small_chunks")


def breaking(
    request: Any, rating_ids: list[int], spoil: Callable[[Any], Any], after: int
) -> TransformersBackend:
    """Return the real backend of a model of which every call after some is spoilt."""
    loaded = load_model(request.model)
    backend = TransformersBackend(loaded, rating_ids, workers=1)
    forward, calls = loaded.model.forward, []

    def breaks(*given: Any, **named: Any) -> Any:
        calls.append(1)
        out = forward(*given, **named)
        return spoil(out) if len(calls) > after else out

    loaded.model.forward = breaks
    return backend


def dies(_: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def forgets(out: Any) -> Any:
    out.logits = torch.full_like(out.logits, torch.nan)
    return out


def fills_up(_: Any) -> Any:
    raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("spoil", [dies, forgets, fills_up])
def test_a_broken_device_ends_the_stage_and_nothing_is_failed_by_it(
    records: Path, tiny_model_folder: Path, tmp_path: Path, spoil: Callable[[Any], Any]
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=2)
    whole = score(request, tmp_path / "whole")
    with pytest.raises(TransientError, match="What came before is kept"):
        ids = whole.details["rating_token_ids"]
        score(request, tmp_path / "out", backend=breaking(request, ids, spoil, 30))
    assert not (tmp_path / "out" / "manifest.json").exists()
    found = score(request, tmp_path / "out")
    assert found.counts["resumed"] > 20
    assert found.counts["failed"] == 0
    assert found.counts["resumed"] + found.counts["scored"] == 120
    stored = [read_scores(tmp_path / name, 2).probabilities for name in ("whole", "out")]
    np.testing.assert_allclose(stored[0], stored[1], atol=1e-5)
    assert whole.counts["ok"] == found.counts["ok"] == 60


class Refuses(HashedBackend):
    """Fails some rows whoever they run with; a known row is fine."""

    def __init__(self, every: int, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.every, self.error = every, error

    def rate_rows(self, batch: TokenBatch) -> np.ndarray:
        if any(int(batch.row(i).sum()) % self.every == 0 for i in range(len(batch))):
            raise self.error("this row is not to my taste")
        return super().rate_rows(batch)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_row_that_failed_by_the_device_is_asked_again_by_a_later_run(
    records: Path, tiny_model_folder: Path, tmp_path: Path, error: type[Exception]
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=2, max_failed_share=1)
    first = score(request, tmp_path / "out", backend=Refuses(7, error))
    failed = first.counts["failed"]
    assert 0 < failed < 30
    assert first.details["failed_by_device"] >= failed
    assert any("asked again" in text for text in first.details["warnings"])
    backend = HashedBackend()
    again = score(request, tmp_path / "out", backend=backend)
    assert again.counts["ok"] == 60
    assert len(backend.calls) == first.details["failed_by_device"]
    assert again.digest == score(request, tmp_path / "clean", backend=HashedBackend()).digest
    untouched = HashedBackend()
    assert score(request, tmp_path / "out", backend=untouched) == again
    assert not untouched.calls


def test_an_interrupted_run_asks_again_what_the_device_failed(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=2, max_failed_share=1)

    class Stops(Refuses):
        def rate_rows(self, batch: TokenBatch) -> np.ndarray:
            if sum(self.sizes) > 70:
                raise KeyboardInterrupt
            return super().rate_rows(batch)

    with pytest.raises(KeyboardInterrupt):
        score(request, tmp_path / "out", backend=Stops(7))
    found = score(request, tmp_path / "out", backend=HashedBackend())
    assert found.counts["ok"] == 60
    assert found.counts["resumed"] + found.counts["reused"] > 40


def test_too_many_failed_records_stop_the_stage_and_what_was_rated_is_kept(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=2)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"more than the 1.0% that rating.max_failed_share") as said:
        score(request, out, backend=HashedBackend(broken=range(12)))
    assert "not a number" in said.value.message
    assert not (out / "manifest.json").exists()
    kept = [*out.glob("journal-*"), *out.glob("part-*")]
    assert kept
    allowed = request_for(records, tiny_model_folder, num_prompts=2, max_failed_share=0.5)
    backend = HashedBackend(broken=range(12))
    manifest = score(allowed, out, backend=backend)
    assert 0 < manifest.counts["failed"] < 30
    assert manifest.counts["resumed"] > 0
    stored = read_scores(out, 2)
    assert ((stored.status == OK) | (stored.status == FAILED)).all()


def test_a_lowered_batch_size_is_obeyed_by_an_interrupted_run(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    class Stops(HashedBackend):
        def rate_rows(self, batch: TokenBatch) -> np.ndarray:
            if sum(self.sizes) > 70:
                raise KeyboardInterrupt
            return super().rate_rows(batch)

    large, small = (
        request_for(records, tiny_model_folder, num_prompts=2, max_batch_tokens=size)
        for size in (2000, 60)
    )
    with pytest.raises(KeyboardInterrupt):
        score(large, tmp_path / "out", backend=Stops())
    backend = HashedBackend()
    found = score(small, tmp_path / "out", backend=backend)
    assert max(backend.sizes) < 8
    assert found.counts["resumed"] > 50
    assert sum(backend.sizes) == found.counts["scored"] == 120 - found.counts["resumed"]
    assert found.digest == score(large, tmp_path / "whole", backend=HashedBackend()).digest


def test_what_does_not_fit_is_halved_down_to_one_row_and_that_is_named() -> None:
    def work(rows: list[int]) -> list[int]:
        if sum(lengths[row] for row in rows) > 10:
            raise MemoryError
        return rows

    lengths = [3, 4, 2, 11, 5, 1]
    retries = RowRetries(lambda: None)
    outcome = retries.run(lengths, work)
    assert outcome.results == {0: 0, 1: 1, 2: 2, 4: 4, 5: 5}
    assert outcome.failures == {3: "out of memory with 11 tokens"}
    assert retries.halvings >= 3


def test_one_failure_that_does_not_come_again_costs_nothing() -> None:
    seen: list[list[int]] = []

    def work(rows: list[int]) -> list[int]:
        seen.append(rows)
        if len(seen) == 1:
            raise RuntimeError("a hiccup")
        return rows

    assert RowRetries(lambda: None).run([5], work).results == {0: 0}
