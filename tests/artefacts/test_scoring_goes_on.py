"""The real scoring stage on two machines: what one rated before it was lost, the other keeps."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "rating"))

from scoring_world import HashedBackend, request_for, some_records, write_records

from selectit_dagster.artefacts.manifest import verify
from selectit_dagster.orchestration.remote_sync import stored
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Silent
from selectit_dagster.rating import scoring, scoring_run
from selectit_dagster.rating.score_folder import SCORE_ROWS, engine_digest, retire_rows
from selectit_dagster.rating.scoring import score, scoring_fingerprint


class LostError(Exception):
    """The machine is gone."""


class Dying(HashedBackend):
    """A backend whose machine is lost after so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def rate(self, batch):
        self.left -= 1
        if self.left < 0:
            raise LostError
        return super().rate(batch)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(scoring_run, "_CHUNK_RECORDS", (16, 16))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "draw", lambda *_: None)


def scores(store, request, backend) -> Stage:
    folder = store.home.scores("tiny")
    return stored(
        Stage(
            "scores",
            folder,
            lambda: scoring_fingerprint(request),
            lambda progress: score(request, folder, progress, backend),
            "prompts",
            work=SCORE_ROWS,
            reuses=lambda old, new: engine_digest(old) == engine_digest(new),
            make_room=lambda: retire_rows(folder),
        ),
        store,
        0.02,
    )


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


@pytest.fixture
def lost(new_store, tmp_path, tiny_model_folder):
    """A request of 60 records, of which a machine rated some before it was lost, disk and all."""
    records = write_records(tmp_path / "records", some_records(60))
    request = request_for(records, tiny_model_folder)
    store, backend = new_store("lost"), Dying(35)
    with pytest.raises(LostError):
        scores(store, request, backend).run(Silent())
    shutil.rmtree(store.home.root)
    assert backend.calls
    return request, backend


def test_no_row_is_rated_twice_and_the_bytes_are_those_of_an_unbroken_run(
    lost, new_store, tmp_path
):
    request, before = lost
    after, store = HashedBackend(), new_store("fresh")
    manifest = scores(store, request, after).run(Silent())
    verify(store.home.scores("tiny"))
    assert manifest.counts["ok"] == 60
    # a batch that was in flight when the machine was lost may be rated again
    again = set(before.calls) & set(after.calls)
    assert len(again) < len(before.calls) / 4
    assert manifest.counts["resumed"] > 0
    score(request, tmp_path / "unbroken", backend=HashedBackend())
    assert parts(store.home.scores("tiny")) == parts(tmp_path / "unbroken")


def test_a_machine_with_rows_of_its_own_takes_over_only_the_others(lost, new_store, tmp_path):
    request, before = lost
    store, own = new_store("other"), Dying(5)
    folder = store.home.scores("tiny")
    with pytest.raises(LostError):
        score(request, folder, backend=own)
    after = HashedBackend()
    scores(store, request, after).run(Silent())
    assert len(set(after.calls) & set(before.calls)) < len(before.calls) / 4
    score(request, tmp_path / "unbroken", backend=HashedBackend())
    assert parts(folder) == parts(tmp_path / "unbroken")
    assert not (folder / ".reuse").exists()


def test_more_records_on_a_fresh_machine_reuse_what_is_published(
    new_store, tmp_path, tiny_model_folder
):
    few = request_for(write_records(tmp_path / "few", some_records(40)), tiny_model_folder)
    scores(new_store("here"), few, HashedBackend()).run(Silent())
    more = request_for(write_records(tmp_path / "more", some_records(60)), tiny_model_folder)
    backend, there = HashedBackend(), new_store("there")
    manifest = scores(there, more, backend).run(Silent())
    assert manifest.counts["scored"] == sum(backend.calls.values()) < 300
    assert manifest.counts["reused"] > 0
    score(more, tmp_path / "unbroken", backend=HashedBackend())
    assert parts(there.home.scores("tiny")) == parts(tmp_path / "unbroken")


def test_rows_of_its_own_are_kept_when_the_complete_scores_come(lost, new_store, tmp_path):
    request, _ = lost
    scores(new_store("fresh"), request, HashedBackend()).run(Silent())
    store = new_store("other")
    folder = store.home.scores("tiny")
    other = request_for(
        write_records(tmp_path / "others", some_records(30, seed=5)), Path(request.model.path)
    )
    own = Dying(20)
    with pytest.raises(LostError):
        score(other, folder, backend=own)
    backend = HashedBackend()
    scores(store, request, backend).run(Silent())
    assert not backend.calls
    verify(folder)
    again = HashedBackend()
    score(other, folder, backend=again)
    # all but the batches in flight when the machine was lost
    assert len(set(again.calls) & set(own.calls)) < len(own.calls) / 4
