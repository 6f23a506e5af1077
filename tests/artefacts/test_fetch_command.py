"""``selectit storage fetch``: what is valid in storage comes into a home."""

from __future__ import annotations

import shutil

import pytest
from artefact import make
from click.testing import CliRunner

from selectit_dagster.cli.main import cli


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run ``selectit storage fetch`` over an experiment whose place is on the disk."""
    (tmp_path / "small.yaml").write_text(
        "name: small\ndataset: {path: owner/data}\nscoring_models: [{name: m, path: owner/m}]\n"
    )
    monkeypatch.setenv("SELECTIT_STORAGE", f"file://{tmp_path}/place")

    def run():
        return CliRunner().invoke(
            cli,
            ["storage", "fetch", str(tmp_path / "small.yaml"), "--home", str(tmp_path / "here")],
        )

    return run


def test_what_is_valid_is_fetched_once_and_what_is_only_here_stays(new_store, command, tmp_path):
    store = new_store("here")
    scores, ranking = store.home.folder / "scores" / "m", store.home.folder / "ranking"
    for folder in (scores, ranking):
        make(folder, {"part-000000.parquet": b"rows"}, model="m")
        store.publish(folder)
    shutil.rmtree(tmp_path / "here")
    make(ranking, {"part-000000.parquet": b"own"}, model="own")
    assert command().output.splitlines() == ["kept     ranking", "fetched  scores/m"]
    assert command().output.splitlines() == ["kept     ranking", "current  scores/m"]
    assert (scores / "part-000000.parquet").read_bytes() == b"rows"
    assert (ranking / "part-000000.parquet").read_bytes() == b"own"


def test_without_a_place_the_command_says_how_to_name_one(command, monkeypatch):
    monkeypatch.delenv("SELECTIT_STORAGE")
    assert "SELECTIT_STORAGE" in command().exception.hint
