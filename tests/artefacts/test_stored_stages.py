"""A stage with storage around it: fetched where it can be, made where it must, published."""

from __future__ import annotations

from pathlib import Path

import pytest
from artefact import content, make

from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    is_current,
    read_manifest,
    require_manifest,
)
from selectit_dagster.artefacts.remote_files import Remote
from selectit_dagster.artefacts.unfinished_work import UnfinishedWork
from selectit_dagster.errors import TransientError
from selectit_dagster.orchestration.remote_sync import bring, stored
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Silent

PARTS = UnfinishedWork(("part-*",))


class Machine:
    """Two stages in one home: `first` makes text, `second` makes it louder."""

    def __init__(self, store, *, text: str = "hello", mark: str = "!", **habits) -> None:
        self.store, self.text, self.mark = store, text, mark
        self.made: list[str] = []
        self.found: list[str] = []
        folder = store.home.folder
        self.first = stored(
            Stage(
                "first", folder / "first", self._first_wanted, self._make_first, "words", **habits
            ),
            store,
            None,
        )
        self.second = stored(
            Stage(
                "second",
                folder / "second",
                self._second_wanted,
                self._make_second,
                "words",
                inputs=(self.first.folder,),
                **habits,
            ),
            store,
            None,
        )

    def _first_wanted(self):
        return {"text": self.text}

    def _second_wanted(self):
        return {"from": require_manifest(self.first.folder, made_by="first").digest, "m": self.mark}

    def _make_first(self, progress):
        return self._make("first", self.first, self._first_wanted(), self.text)

    def _make_second(self, progress):
        text = (self.first.folder / "text").read_text()
        return self._make("second", self.second, self._second_wanted(), text + self.mark)

    def _make(self, name, stage, wanted, text):
        if not is_current(stage.folder, wanted):
            self.found = sorted(p.name for p in stage.folder.glob("[a-z]*"))
            make(stage.folder, {"text": text.encode()}, **wanted)
            self.made.append(name)
        return read_manifest(stage.folder)

    def run(self) -> None:
        self.first.run(Silent())
        self.second.run(Silent())


def test_a_fresh_machine_fetches_everything_and_makes_nothing(new_store):
    here, there = Machine(new_store("here")), Machine(new_store("there"))
    here.run()
    assert not there.first.is_current()
    there.run()
    assert (here.made, there.made) == (["first", "second"], [])
    assert content(there.second.folder) == content(here.second.folder)
    assert there.second.is_current()
    assert there.second.was_fetched()
    assert not here.second.was_fetched()


def test_a_machine_that_only_runs_the_second_stage_gets_what_that_reads(new_store):
    here, pod = Machine(new_store("here")), Machine(new_store("pod"), mark="?")
    here.run()
    pod.second.run(Silent())
    assert pod.made == ["second"]
    assert (pod.second.folder / "text").read_text() == "hello?"


def test_an_older_copy_of_an_input_gives_way_to_the_valid_one(new_store):
    here, pod = Machine(new_store("here")), Machine(new_store("pod"))
    here.run()
    pod.run()
    again = Machine(new_store("here"), text="bye")
    again.run()
    later = Machine(new_store("pod"), text="bye")
    later.second.run(Silent())
    assert later.made == []
    assert (later.second.folder / "text").read_text() == "bye!"


def test_work_that_is_only_here_is_kept_and_published(new_store):
    here, there = Machine(new_store("here")), Machine(new_store("there"), text="bye")
    here.run()
    there._make_first(None)
    assert bring(there.store, there.first.folder, Silent()) == "kept"
    assert not there.first.is_current()
    there.run()
    assert there.store.head(there.first.folder).manifest.fingerprint == {"text": "bye"}


def test_settings_that_were_in_force_before_are_fetched_not_made(new_store):
    here = new_store("here")
    Machine(here).run()
    Machine(here, text="bye").run()
    there = Machine(new_store("there"))
    there.run()
    assert there.made == []
    assert (there.second.folder / "text").read_text() == "hello!"


def test_what_storage_lost_is_published_again(new_store, tmp_path):
    machine = Machine(new_store("here"))
    machine.run()
    head = tmp_path / "place" / "experiments" / "small" / "second" / MANIFEST
    head.unlink()
    assert not machine.second.is_current()
    machine.run()
    assert machine.made == ["first", "second"]
    assert head.exists()


def test_an_artefact_that_could_not_be_published_is_published_by_the_next_try(new_store, tmp_path):
    class Down(Remote):
        down = True

        def write(self, key: str, content: bytes | Path) -> None:
            if self.down:
                raise TransientError("no answer")
            super().write(key, content)

    place = Down(f"file://{tmp_path}/place")
    machine = Machine(new_store("here", place))
    with pytest.raises(TransientError):
        machine.run()
    assert machine.made == ["first"]
    place.down = False
    machine.run()
    assert machine.made == ["first", "second"]
    assert machine.second.is_current()


def test_a_stage_that_takes_rows_over_gets_what_there_is_of_other_settings(new_store):
    here = Machine(new_store("here"))
    here.run()
    reusing = Machine(new_store("one"), text="bye", reuses=lambda old, new: True, work=PARTS)
    reusing.first.run(Silent())
    assert reusing.found == [MANIFEST, "text"]
    picky = Machine(new_store("two"), text="ciao", reuses=lambda old, new: False, work=PARTS)
    picky.first.run(Silent())
    assert picky.found == []


def test_a_stage_may_keep_what_it_has_before_another_artefact_comes(new_store):
    here = Machine(new_store("here"), text="bye")
    here.run()
    kept = []
    there = Machine(new_store("there"))
    there._make_first(None)
    fetching = Machine(
        there.store, text="bye", make_room=lambda: kept.append(content(there.first.folder)["text"])
    )
    fetching.first.run(Silent())
    assert fetching.made == []
    assert kept == [b"hello"]
    assert content(fetching.first.folder)["text"] == b"bye"


def test_what_was_under_way_goes_when_the_complete_artefact_comes(new_store):
    here, there = Machine(new_store("here")), Machine(new_store("there"), work=PARTS)
    here.run()
    there.first.folder.mkdir(parents=True)
    (there.first.folder / "part-0").write_bytes(b"half")
    there.run()
    assert there.made == []
    assert not (there.first.folder / "part-0").exists()
