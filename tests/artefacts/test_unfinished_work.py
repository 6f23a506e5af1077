"""Work under way is safe in storage while it goes on, and goes on elsewhere."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from artefact import make

from selectit_dagster.artefacts.remote_files import Remote
from selectit_dagster.artefacts.unfinished_work import Sender, take_up, unfinished
from selectit_dagster.errors import TransientError
from selectit_dagster.rating.score_folder import SCORE_ROWS

FINGERPRINT = {"model": "m", "records": "r"}


def folder_of(store):
    folder = store.home.folder / "scores" / "m"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def work(folder, **files: bytes) -> None:
    for name, content in files.items():
        (folder / name.replace("__", "-").replace("_", ".")).write_bytes(content)


def sender(store, seconds: float = 1000.0) -> Sender:
    return Sender(store, folder_of(store), FINGERPRINT, SCORE_ROWS, seconds)


def names(folder) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_an_empty_machine_goes_on_where_a_lost_one_stopped(new_store):
    lost, fresh = new_store("lost"), new_store("fresh")
    work(folder_of(lost), state_json=b"{}", part__0_parquet=b"rows", journal__1_jsonl=b"a\n")
    sender(lost).round()
    assert take_up(fresh, folder_of(fresh), FINGERPRINT, SCORE_ROWS) == 3
    for name in ("state.json", "part-0.parquet", "journal-1.jsonl"):
        assert (folder_of(fresh) / name).read_bytes() == (folder_of(lost) / name).read_bytes()


def test_only_what_is_new_or_has_grown_is_sent_again(new_store, tmp_path):
    class Counting(Remote):
        def write(self, key: str, content: bytes | Path) -> None:
            written.append(key.rpartition("/")[2])
            super().write(key, content)

    written: list[str] = []
    store = new_store("here", Counting(f"file://{tmp_path}/place"))
    sends = sender(store)
    work(folder_of(store), part__0_parquet=b"rows", journal__1_jsonl=b"a\n")
    sends.round()
    assert written == ["journal-1.jsonl", "part-0.parquet", "files.json"]
    written.clear()
    sends.round()
    assert written == []
    work(folder_of(store), journal__1_jsonl=b"a\nb\n")
    sends.round()
    assert written == ["journal-1.jsonl", "files.json"]


def test_work_for_something_else_is_not_taken_up(new_store):
    lost, fresh = new_store("lost"), new_store("fresh")
    work(folder_of(lost), part__0_parquet=b"rows")
    sender(lost).round()
    assert take_up(fresh, folder_of(fresh), {"model": "other"}, SCORE_ROWS) == 0
    assert names(folder_of(fresh)) == []


@pytest.mark.parametrize("damage", ["part-0.parquet", "files.json"])
def test_damaged_work_is_told_and_done_again(new_store, tmp_path, caplog, damage):
    lost, fresh = new_store("lost"), new_store("fresh")
    work(folder_of(lost), part__0_parquet=b"rows", part__1_parquet=b"more")
    sender(lost).round()
    next((tmp_path / "place").rglob(damage)).write_bytes(b"[")
    with caplog.at_level(logging.WARNING):
        assert take_up(fresh, folder_of(fresh), FINGERPRINT, SCORE_ROWS) == 0
    assert "cannot be taken up" in caplog.text
    assert SCORE_ROWS.files(folder_of(fresh)) == []


def test_beside_work_of_its_own_rows_go_where_they_are_taken_over_from(new_store):
    lost, other = new_store("lost"), new_store("other")
    work(folder_of(lost), state_json=b"{}", part__0_parquet=b"theirs", part__1_parquet=b"same")
    sender(lost).round()
    work(folder_of(other), state_json=b"{1}", part__0_parquet=b"own", part__1_parquet=b"same")
    assert take_up(other, folder_of(other), FINGERPRINT, SCORE_ROWS) == 1
    assert (folder_of(other) / "part-0.parquet").read_bytes() == b"own"
    assert (folder_of(other) / "state.json").read_bytes() == b"{1}"
    (aside,) = (folder_of(other) / ".reuse").iterdir()
    assert aside.read_bytes() == b"theirs"


class Racing(Remote):
    """A place on the disk; whatever is sent to it goes on growing."""

    folder: Path

    def write(self, key: str, content: bytes | Path) -> None:
        super().write(key, content)
        if "/unfinished/" in key and not key.endswith("files.json"):
            with (self.folder / key.rpartition("/")[2]).open("ab") as handle:
                handle.write(b"more\n")


@pytest.fixture
def racing(new_store, tmp_path):
    place = Racing(f"file://{tmp_path}/place")
    store = new_store("here", place)
    place.folder = folder_of(store)
    return store


def test_a_file_that_changes_while_it_is_sent_is_not_listed(racing):
    work(folder_of(racing), part__0_parquet=b"rows")
    sender(racing).round()
    assert unfinished(racing, folder_of(racing)) is None


def test_a_journal_that_grows_all_the_time_is_listed_as_it_was(racing, new_store):
    work(folder_of(racing), journal__1_jsonl=b"a\n")
    sender(racing).round()
    fresh = new_store("fresh")
    assert take_up(fresh, folder_of(fresh), FINGERPRINT, SCORE_ROWS) == 1
    assert (folder_of(fresh) / "journal-1.jsonl").read_bytes() == b"a\n"


def test_work_goes_on_without_the_storage_and_one_warning_says_so(new_store, tmp_path, caplog):
    class Down(Remote):
        def write(self, key: str, content: bytes | Path) -> None:
            if down:
                raise TransientError("no answer")
            super().write(key, content)

    down = [True]
    store = new_store("here", Down(f"file://{tmp_path}/place"))
    work(folder_of(store), part__0_parquet=b"rows")
    sends = sender(store)
    with caplog.at_level(logging.WARNING):
        sends.try_round()
        sends.try_round()
    assert caplog.text.count("only on this machine for now") == 1
    down.clear()
    sends.try_round()
    assert unfinished(store, folder_of(store)) is not None


def test_parts_are_sent_while_the_stage_runs_and_once_more_when_it_fails(new_store):
    store = new_store("here")
    seen = threading.Event()
    sends = sender(store, seconds=0.01)
    once = sends.try_round

    def watched() -> None:
        once()
        if unfinished(store, folder_of(store)) is not None:
            seen.set()

    sends.try_round = watched
    with pytest.raises(KeyboardInterrupt), sends.running():
        work(folder_of(store), part__0_parquet=b"rows")
        assert seen.wait(10)
        sends._stop.set()
        work(folder_of(store), part__1_parquet=b"more")
        raise KeyboardInterrupt
    found = unfinished(store, folder_of(store))
    assert [item.name for item in found.items] == ["part-0.parquet", "part-1.parquet"]


def test_a_complete_artefact_ends_the_list(new_store):
    store = new_store("here")
    work(folder_of(store), part__0_parquet=b"rows")
    sender(store).round()
    make(folder_of(store), {"part-0.parquet": b"rows"}, **FINGERPRINT)
    sender(store).round()
    store.publish(folder_of(store))
    assert unfinished(store, folder_of(store)) is None
