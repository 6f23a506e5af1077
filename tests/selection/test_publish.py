"""Publishing a selected dataset."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.manifest import verify
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.selection.publish import publish
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.score_table import write_score_table
from selectit_dagster.selection.subset import select

from .stored import certain, chosen, selection, world


class Hub:
    """Stands in for the hub's client and remembers what it was asked."""

    def __init__(self, copy: Path | None = None) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.copy = copy

    def create_repo(self, name, **options):
        self.calls.append((name, options))

    def upload_folder(self, **options):
        self.calls.append(("upload", options))
        if self.copy is not None:
            shutil.copytree(options["folder_path"], self.copy)
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_publishing_sends_the_selection_and_nothing_else(tmp_path):
    folder = chosen(tmp_path, {"a": 0.9, "b": 0.8}, 1)
    hub = Hub()
    assert publish(folder, "me/data", api=hub) == "https://hub/commit/1"
    assert hub.calls[0][1]["private"] is True
    sent = hub.calls[1][1]["allow_patterns"]
    assert sorted(sent) == ["README.md", "data.jsonl", "dataset.parquet", "manifest.json"]


def test_what_is_published_passes_its_own_check_and_names_no_other_record(tmp_path):
    chosen(tmp_path, {"out-one": 0.9, "kept-two": 0.8, "out-three": 0.7}, 1)
    folder = chosen(tmp_path, {"out-one": 0.1, "kept-two": 0.8, "out-three": 0.7}, 1)
    publish(folder, "me/data", api=Hub(tmp_path / "sent"))
    sent = tmp_path / "sent"
    assert verify(sent).counts["selected"] == 1
    scores = [row["score"] for row in pq.read_table(folder / "candidates.parquet").to_pylist()]
    for path in sent.iterdir():
        for secret in ("out-one", "out-three", *map(str, scores[1:])):
            assert secret.encode() not in path.read_bytes(), (path, secret)


def test_the_scores_of_all_records_are_published_when_asked_for(tmp_path):
    folder = chosen(tmp_path, {"a": 0.9, "b": 0.8, "c": 0.7}, 1)
    ranking = next(tmp_path.rglob("ranking.parquet")).parent
    table = tmp_path / "all.parquet"
    assert write_score_table(ranking, {"selectit": folder}, table) == 3
    rows = pq.read_table(table).to_pylist()
    ranked = pq.read_table(ranking / "ranking.parquet").to_pylist()
    for row, known in zip(rows, ranked, strict=True):
        assert row == {
            "record_id": known["record_id"],
            "status": "ok",
            "rank": known["rank"],
            "score": known["score"],
            **{f"sentence_score/{m}": s for m, s in known["sentence_score"]},
            "selectit/selected": known["rank"] == 1,
            "selectit/score": known["score"],
        }
    publish(folder, "me/data", scores=table, api=Hub(tmp_path / "sent"))
    assert "scores.parquet" in verify(tmp_path / "sent").files


def test_the_scores_of_many_arms_fit_into_memory(tmp_path):
    folder = chosen(tmp_path, {"a": 0.9, "b": 0.8, "c": 0.7}, 1)
    arms = {f"arm-{number}": folder for number in range(40)}
    assert write_score_table(tmp_path / "ranking", arms, tmp_path / "all.parquet") == 3
    table = pq.read_table(tmp_path / "all.parquet")
    assert table["arm-39/selected"].to_pylist() == [True, False, False]
    assert table["arm-39/score"].to_pylist() == table["score"].to_pylist()


def test_publishing_needs_a_token_a_name_and_unaltered_files(tmp_path, monkeypatch):
    folder = chosen(tmp_path, {"a": 0.9, "b": 0.8}, 1)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match="needs a token"):
        publish(folder, "me/data")
    with pytest.raises(UserError, match="no name on the hub"):
        publish(folder, "data", api=Hub())
    (folder / "data.jsonl").write_text("other")
    with pytest.raises(ArtefactError, match="truncated or altered"):
        publish(folder, "me/data", api=Hub())


def test_a_hub_that_is_switched_off_and_a_name_that_it_refuses_are_told(tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder = chosen(tmp_path, {"a": 0.9, "b": 0.8}, 1)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="switched off") as refusal:
        publish(folder, "me/data")
    assert "HF_HUB_OFFLINE" in refusal.value.message
    assert "out of the environment" in refusal.value.hint
    with pytest.raises(UserError, match="the hub refuses 'me/two words': Repo id") as refusal:
        publish(folder, "me/two words")
    assert "owner/name" in refusal.value.hint


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_write_is_told_with_the_variable(tmp_path, status):
    from huggingface_hub.errors import HfHubHTTPError

    class Refusing(Hub):
        def create_repo(self, name, **options):
            answer = SimpleNamespace(status_code=status, headers={}, request=None)
            raise HfHubHTTPError("no", response=answer)

    folder = chosen(tmp_path, {"a": 0.9, "b": 0.8}, 1)
    with pytest.raises(UserError, match="does not let this token write to 'me/data'") as refusal:
        publish(folder, "me/data", api=Refusing())
    assert "HF_TOKEN" in refusal.value.hint


def test_published_files_hold_no_local_paths(tmp_path):
    folder = tmp_path / "x"
    request = world(folder, ["a", "b"], certain([0.9, 0.8]), models=("small",))
    rank(request, folder / "ranking")
    prompts = tmp_path / "private" / "prompts.txt"
    prompts.parent.mkdir()
    prompts.write_text("Rate the answer from 1 to 5.\nGrade it.\n")
    provenance = {
        "source": "a.json",
        "models": [{"name": "small", "path": "/srv/private/model", "revision": None}],
        "rating": {"prompts": str(prompts), "num_prompts": 2},
    }
    asked = selection(request, folder / "ranking", provenance=provenance)
    select(replace(asked, size=1.0), folder / "out")
    for name in ("README.md", "manifest.json"):
        text = (folder / "out" / name).read_text()
        assert "private" not in text and "prompts.txt" in text and "Rate the answer" in text
