"""A hub name's commit: the hub's word, else what its cache here holds, else a plain refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from selectit_dagster.artefacts.hub import hub_commit
from selectit_dagster.errors import PassingError, UserError

COMMIT = "c0ffee" * 6 + "abcd"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def take_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub be an address where nothing listens."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def commit(kind: str, revision: str | None = None) -> str:
    return hub_commit("some/name", revision, kind, hint="check it")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_without_the_hub_the_cached_commit_counts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="switched off") as caught:
        commit(kind)
    assert not isinstance(caught.value, PassingError)
    folder = tmp_path / f"{kind}s--some--name"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    assert commit(kind) == commit(kind, COMMIT) == COMMIT
    take_away(monkeypatch)
    assert commit(kind) == COMMIT
    with pytest.raises(UserError, match="at revision 'other'"):
        commit(kind, "other")


def test_a_hub_that_does_not_answer_may_answer_later(monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch)
    with pytest.raises(PassingError, match=r"cannot be reached for it: .*refused"):
        commit("model")
