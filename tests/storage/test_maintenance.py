"""Looking after a place: what is missing is found and mended, what is replaced can go."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from artefact import make
from click.testing import CliRunner

from selectit_dagster.cli import commands  # noqa: F401 - registers the commands
from selectit_dagster.cli.main import cli
from selectit_dagster.rating.score_folder import SCORE_ROWS
from selectit_dagster.storage import maintenance
from selectit_dagster.storage.unfinished import take_up

PARTS = {"part-000000.parquet": b"rows 0", "part-000001.parquet": b"rows 1"}
SOON = dt.datetime.now(dt.UTC) + dt.timedelta(days=40)
MONTH = dt.timedelta(days=30)


def folder_of(store) -> Path:
    return store.home.folder / "scores" / "m"


@pytest.fixture
def store(new_store):
    """A store with the scores of one model published."""
    made = new_store("here")
    make(folder_of(made), PARTS, model="m")
    made.publish(folder_of(made))
    return made


def stored_file(store, content: bytes) -> Path:
    root = Path(store.remote.url.removeprefix("file://"))
    return next(p for p in root.rglob("part-*") if p.read_bytes() == content)


def found(store, **options):
    return list(maintenance.problems(store, maintenance.inventory(store), **options))


def test_a_whole_place_has_no_problems(store):
    assert found(store, hashes=True) == []


@pytest.mark.parametrize(
    ("damage", "hashes", "what"),
    [(None, False, "is missing"), (b"row", False, "has 3 bytes"), (b"rows X", True, "was altered")],
)
def test_damage_is_found_and_mended_from_a_home_that_has_the_file(store, damage, hashes, what):
    victim = stored_file(store, b"rows 1")
    victim.unlink() if damage is None else victim.write_bytes(damage)
    problems = found(store, hashes=hashes)
    # the valid manifest names it, and the same one under its fingerprint
    assert len(problems) == 2
    assert what in problems[0].what
    mended, taken_out = maintenance.repair(store, problems)
    assert mended
    assert taken_out == []
    assert found(store, hashes=True) == []


def test_scores_that_nobody_has_any_more_keep_their_whole_parts_as_work_under_way(store, new_store):
    stored_file(store, b"rows 1").unlink()
    other = new_store("other")
    mended, taken_out = maintenance.repair(other, found(other))
    assert mended == []
    assert len(taken_out) == 2
    assert other.head(folder_of(other)) is None
    assert take_up(other, folder_of(other), {"model": "m"}, SCORE_ROWS) == 1
    assert (folder_of(other) / "part-000000.parquet").read_bytes() == b"rows 0"


def test_nothing_valid_is_garbage_however_old(store):
    garbage = maintenance.garbage(store, MONTH, now=SOON)
    assert (garbage.manifests, garbage.objects) == ({}, {})


def test_a_replaced_artefact_goes_with_what_only_it_has(store, new_store):
    make(folder_of(store), {**PARTS, "part-000001.parquet": b"rows 2"}, model="n")
    store.publish(folder_of(store))
    garbage = maintenance.garbage(store, MONTH, now=SOON)
    assert len(garbage.manifests) == 1
    assert len(garbage.objects) == 1
    maintenance.collect(store, garbage)
    other = new_store("other")
    assert other.made(folder_of(other), {"model": "m"}) is None
    other.fetch(folder_of(other), other.head(folder_of(other)))
    assert (folder_of(other) / "part-000001.parquet").read_bytes() == b"rows 2"


def test_young_content_that_nothing_names_yet_stays(store):
    key = f"{store.stage(folder_of(store))}/objects/{'0' * 64}/part-000009.parquet"
    store.remote.write(key, b"a run writes this now")
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=20)
    assert maintenance.garbage(store, dt.timedelta(0), now=soon).objects == {}
    assert list(maintenance.garbage(store, dt.timedelta(0), now=SOON).objects) == [key]


def test_content_that_was_named_after_it_was_found_stays(store):
    make(folder_of(store), {"part-000000.parquet": b"old"}, model="n")
    store.publish(folder_of(store))
    garbage = maintenance.garbage(store, MONTH, now=SOON)
    assert len(garbage.objects) == 2
    make(folder_of(store), PARTS, model="p")
    store.publish(folder_of(store))
    maintenance.collect(store, garbage)
    assert found(store) == []


def test_the_parts_of_work_under_way_are_no_garbage(store, new_store):
    folder = store.home.folder / "scores" / "other"
    folder.mkdir(parents=True)
    (folder / "part-000000.parquet").write_bytes(b"under way")
    from selectit_dagster.storage.unfinished import Sender

    Sender(store, folder, {"model": "o"}, SCORE_ROWS, 1.0).round()
    assert maintenance.garbage(store, MONTH, now=SOON).objects == {}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run `selectit storage` on a small experiment whose scores are published."""
    experiment = tmp_path / "small.yaml"
    experiment.write_text(
        "name: small\ndataset: {path: x.json}\nscoring_models: [{name: m, path: ./m}]\n",
        encoding="utf-8",
    )

    def run(*words: str):
        arguments = ["storage", *words, str(experiment), "--home", str(tmp_path / "here")]
        return CliRunner().invoke(cli, arguments)

    monkeypatch.setenv("SELECTIT_STORAGE", f"file://{tmp_path}/place")
    return run


def test_the_command_checks_and_repairs(store, command):
    assert command("check").exit_code == 0
    stored_file(store, b"rows 1").unlink()
    answer = command("check")
    assert answer.exit_code == 2
    assert "is missing" in answer.output
    answer = command("check", "--repair")
    assert answer.exit_code == 0
    assert "mended from this home" in answer.output
    assert command("check", "--hashes").exit_code == 0


def test_the_command_fetches_into_a_home_and_removes_nothing_unasked(store, command, tmp_path):
    import shutil

    shutil.rmtree(tmp_path / "here")
    assert "fetched  scores/m" in command("fetch").output
    assert "current  scores/m" in command("fetch").output
    answer = command("gc")
    assert answer.exit_code == 0
    assert "0 manifests and 0 objects" in answer.output


def test_without_a_place_the_command_says_how_to_name_one(command, monkeypatch):
    monkeypatch.delenv("SELECTIT_STORAGE")
    error = command("check").exception
    assert "SELECTIT_STORAGE" in error.hint
