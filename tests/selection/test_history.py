"""Versions of a selection: kept, listed, gone back to, promoted, pruned."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.manifest import read_manifest, verify
from selectit_dagster.errors import UserError
from selectit_dagster.selection.history import TAKEN_OVER, History

from .stored import chosen

NAMES = "abcdefgh"


class Weeks:
    """One arm that is selected again and again, each week with other ratings."""

    def __init__(self, folder, **options):
        self.folder, self.out = folder, folder / "selected" / "selectit"
        self.history = History(folder / "history" / "selectit", self.out, **options)
        self.weeks = 0

    def select(self, best, count=2, **more):
        """Select ``count`` records of which ``best`` are the first, as a stage does."""
        self.weeks += 1
        ratings = {n: 0.9 - i / 20 for i, n in enumerate([*best, *sorted(set(NAMES) - {*best})])}
        self.history.adopt()
        chosen(self.folder / f"week-{self.weeks}", ratings, count, out=self.out, **more)
        return self.history.record()

    def ids(self, folder=None):
        return pq.read_table((folder or self.out) / "dataset.parquet")["record_id"].to_pylist()


@pytest.fixture
def weeks(tmp_path):
    return Weeks(tmp_path)


def test_each_selection_is_kept_with_its_change_and_who_asked(weeks):
    assert weeks.select("ab")
    weeks.history.note(asked_by="schedule weekly", dagster_run="d1", mlflow_run="m1")
    assert weeks.select("bc")
    first, second = weeks.history.state.versions
    assert (first.asked_by, first.dagster_run, first.mlflow_run) == ("schedule weekly", "d1", "m1")
    assert first.change is None and second.asked_by == ""
    assert second.change["entered"] == 1 and second.change["left"] == 1
    assert weeks.ids(weeks.history.place(first)) == ["a", "b"]
    for version in (first, second):
        assert verify(weeks.history.place(version)).digest == version.digest
    assert (weeks.history.place(first) / "candidates.parquet").exists()
    assert verify(weeks.history.folder).kind == "selection_history"
    assert weeks.history.current == second


def test_a_selection_that_changes_nothing_makes_no_version_and_says_so(weeks):
    weeks.select("ab")
    weeks.history.note(asked_by="command")
    assert not weeks.select("ab", alpha=0.7)  # other scores, the same records in order
    weeks.history.note(asked_by="schedule weekly")
    (only,) = weeks.history.state.versions
    assert only.asked_by == "command"
    said = weeks.history.said()
    assert "(schedule weekly): nothing changed, still v1." in said


def test_a_selection_of_before_is_the_first_version(weeks):
    chosen(weeks.folder / "before", {"a": 0.9, "b": 0.8, "c": 0.7}, 2, out=weeks.out)
    before = read_manifest(weeks.out)
    weeks.select("cd")
    first, second = weeks.history.state.versions
    assert (first.asked_by, first.digest) == (TAKEN_OVER, before.digest)
    assert second.change["entered"] == 2


def test_a_version_gone_back_to_stays_until_something_else_is_asked_for(weeks):
    weeks.select("ab")
    weeks.select("cd")
    asked = read_manifest(weeks.out).fingerprint
    weeks.history.use("v1", "the new ones are all of one kind")
    assert weeks.ids() == ["a", "b"]
    assert verify(weeks.out).digest == weeks.history.current.digest
    assert "the new ones are all of one kind" in weeks.history.said()
    # what had been selected is asked for again: the version stands in for it
    assert weeks.history.asked(asked) == read_manifest(weeks.out).fingerprint
    other = {**asked, "records": "other"}
    assert weeks.history.asked(other) == other
    assert weeks.select("ef")  # other data: the next version, compared with the one in use
    assert [v.name for v in weeks.history.state.versions] == ["v1", "v2", "v3"]
    assert weeks.history.current.change["entered"] == 2
    assert weeks.history.asked(asked) == asked


def test_going_forward_again_ends_the_standing_in(weeks):
    weeks.select("ab")
    weeks.select("cd")
    asked = read_manifest(weeks.out).fingerprint
    weeks.history.use("1", "a try")
    weeks.history.use("2", "and back")
    assert weeks.ids() == ["c", "d"]
    assert weeks.history.asked(asked) == asked


def test_a_what_if_becomes_a_version_only_when_it_is_promoted(weeks):
    weeks.select("ab")
    asked = read_manifest(weeks.out).fingerprint
    ratings = {n: i / 10 for i, n in enumerate(NAMES)}
    tried = chosen(weeks.folder / "tried", ratings, 3)
    assert len(weeks.history.state.versions) == 1
    version = weeks.history.promote(tried, "abc123", "better", asked_by="command")
    assert (version.name, version.what_if, version.asked_by) == ("v2", "abc123", "command")
    assert weeks.ids() == weeks.ids(tried)
    assert weeks.history.asked(asked) == read_manifest(tried).fingerprint


def test_keep_bounds_the_versions_but_not_those_in_use(tmp_path):
    used = set()
    weeks = Weeks(tmp_path, keep=2, in_use=lambda: used)
    weeks.select("ab")
    used.add(weeks.history.current.digest)
    for best in ("cd", "ef", "gh", "ac"):
        weeks.select(best)
    state = weeks.history.state
    assert [v.number for v in state.versions if v.kept] == [1, 4, 5]
    assert not (weeks.history.folder / "v2").exists()
    with pytest.raises(UserError, match="v2 is no longer kept") as refusal:
        weeks.history.use("v2", "")
    assert refusal.value.hint == "the versions are v1, v4, v5"
    assert len(weeks.history.rows()) == 5
    (beyond,) = weeks.history.removable(keep=1)
    size = (weeks.history.place(beyond) / "dataset.parquet").stat().st_size
    assert weeks.history.prune([beyond]) > size
    assert weeks.history.removable(keep=1) == []


def test_an_unknown_version_is_refused_with_those_there_are(weeks):
    with pytest.raises(UserError, match="v9 is no version of the selection selectit"):
        weeks.history.find("v9")
    weeks.select("ab")
    assert weeks.history.find("current") == weeks.history.current
    json.dumps(weeks.history.rows())
