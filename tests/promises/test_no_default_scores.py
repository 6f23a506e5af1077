"""Promise 2: no number without a forward pass behind it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.experiment import RatingSection, ScoringModel
from selectit_dagster.inference.backends.protocol import BatchScores, local_backend
from selectit_dagster.inference.model_loading import load_model
from selectit_dagster.rating.score_store import OK, read_scores
from selectit_dagster.rating.scoring import ScoringRequest, score


class Recorder:
    """A backend that notes every row that it really ran, and fails some."""

    def __init__(self, inner, fails=lambda row: False):
        self.inner, self.fails = inner, fails
        self.facts, self.notes = inner.facts, inner.notes
        self.ran: dict[bytes, np.ndarray] = {}

    def rate(self, batch):
        found = self.inner.rate(batch)
        failures = {i: "refused" for i in range(len(batch)) if self.fails(batch.row(i))}
        for i in range(len(batch)):
            self.ran[batch.row(i).tobytes()] = found.log_probabilities[i]
        return BatchScores(found.log_probabilities, failures)

    def peak_memory_bytes(self):
        return 0


@pytest.fixture
def request_for(tmp_path, tiny_model_folder):
    rows = [(f"r{i}", f"Say {i}.", "", f"It is {i}.") for i in range(12)]
    rows.append(("long", "word " * 900, "", "too long"))
    names = ("record_id", "instruction", "input", "response")
    table = pa.table({n: list(c) for n, c in zip(names, zip(*rows, strict=True), strict=True)})
    pq.write_table(table, tmp_path / "records.parquet")
    model = ScoringModel(name="m", path=str(tiny_model_folder))
    rating = RatingSection(num_prompts=2, max_batch_tokens=256, max_failed_share=1)
    return ScoringRequest(tmp_path / "records.parquet", model, rating)


def _backend(request, fails=lambda row: False):
    from selectit_dagster.rating.rating_tokens import Encoder, find_rating_tokens

    loaded = load_model(request.model)
    ids = find_rating_tokens(Encoder(loaded.tokenizer), ["The answer is: \n"], 5)
    return Recorder(local_backend(loaded, ids), fails)


def test_every_stored_distribution_came_out_of_the_backend(request_for, tmp_path):
    backend = _backend(request_for)
    manifest = score(request_for, tmp_path / "out", backend=backend)
    stored = read_scores(tmp_path / "out", 2)
    rated = stored.probabilities[stored.status == OK]
    assert len(rated) == 24
    logits = np.stack(list(backend.ran.values())).astype(np.float64)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    for row in rated:
        assert np.abs(expected - row).max(axis=1).min() < 1e-6
    assert np.isnan(stored.probabilities[stored.status != OK]).all()
    assert manifest.counts["too_long"] == 1


def test_a_row_that_the_backend_fails_has_a_reason_and_no_number(request_for, tmp_path):
    backend = _backend(request_for, fails=lambda row: int(row.sum()) % 5 == 0)
    manifest = score(request_for, tmp_path / "out", backend=backend)
    stored = read_scores(tmp_path / "out", 2)
    assert manifest.counts["failed"] + manifest.counts["ok"] + 1 == 13
    assert manifest.counts["failed"] > 0
    for record, prompt in np.argwhere(stored.status != OK).tolist():
        assert np.isnan(stored.probabilities[record, prompt]).all()
        assert np.isnan(stored.rating_mass[record, prompt])
        assert stored.reasons[record, prompt]
