"""What a new selection changed: settings, the cut, what entered and left, and why."""

from __future__ import annotations

import hashlib

import pytest

from selectit_dagster.errors import ArtefactError
from selectit_dagster.selection.difference import compare_selections
from selectit_dagster.selection.subset import SelectionRequest, select

from .stored import chosen, write_records


def test_every_reason_is_told_apart(tmp_path):
    before = {"a": 0.95, "b": 0.9, "c": 0.85, "d": 0.8, "gone": 0.99}
    after = {"a": 0.95, "b": 0.6, "c": 0.85, "d": 0.97, "new": 0.93}
    old, new = chosen(tmp_path / "old", before, 4), chosen(tmp_path / "new", after, 3)
    change = compare_selections(old, new)
    assert change.entered == {"new record": 1, "score rose": 1}
    assert change.left == {"record gone": 1, "score fell": 1, "cut moved": 1}
    assert change.kept == 1
    assert [m.record_id for m in change.examples["left"]] == ["gone", "b", "c"]
    fell = change.examples["left"][1]
    assert fell.old_score > fell.new_score and (fell.old_rank, fell.new_rank) == (3, 5)
    assert [s["name"] for s in change.settings] == ["size"]
    text = change.summary()["text"]
    assert text.startswith("Settings differ: size count 4 → count 3. 1 records stayed; 2 entered ")
    assert "the cut moved from" in text


def test_other_settings_are_named_first_and_blamed_for_what_moved(tmp_path):
    ratings = {name: 0.5 + i / 20 for i, name in enumerate("abcdef")}
    old = chosen(tmp_path / "old", ratings, 2, alpha=0.2)
    new = chosen(tmp_path / "new", dict(zip("fedcba", ratings.values(), strict=True)), 2, alpha=1.0)
    change = compare_selections(old, new)
    assert change.settings == [{"name": "alpha", "old": 0.2, "new": 1.0}]
    assert change.entered == {"settings": 2} and change.left == {"settings": 2}
    assert change.text().startswith("Settings differ: alpha 0.2 → 1.0. 0 records stayed")


def test_a_quota_is_named_where_the_rank_alone_would_say_otherwise(tmp_path):
    ratings = {name: 0.9 - i / 20 for i, name in enumerate(("a", "b", "c", "dd", "ee", "ff"))}
    quota = {"quota": {"by": "length", "bands": 2, "rule": "equal"}}
    old = chosen(tmp_path / "old", ratings, 2, parameters=quota)
    new = chosen(tmp_path / "new", {**ratings, "dd": 0.5}, 2, parameters=quota)
    change = compare_selections(old, new)
    # each half of the lengths gives one: ee is the best of its half now, and fourth of all
    assert (change.entered, change.left) == ({"quota": 1}, {"score fell": 1})
    alone = chosen(tmp_path / "alone", ratings, 2)
    assert [s["name"] for s in compare_selections(alone, old).settings] == ["quota"]


def test_what_a_person_marked_is_told_from_what_moved_by_it(tmp_path):
    ratings = {name: 0.9 - i / 20 for i, name in enumerate("abcdef")}
    review = tmp_path / "review.jsonl"
    review.write_text('{"record_id": "f", "mark": "keep"}\n{"record_id": "a", "mark": "drop"}\n')
    old = chosen(tmp_path / "old", ratings, 3)
    new = chosen(tmp_path / "new", ratings, 3, review=review)
    change = compare_selections(old, new)
    assert [s["name"] for s in change.settings] == ["review"]
    assert change.entered == {"mark": 1} and change.left == {"mark": 1}
    assert compare_selections(new, old).entered == {"mark": 1}


def arm_of(folder, names, kind, *, seed=None, texts=None):
    """Select three records of these by an arm without stored scores."""
    write_records(folder / "curated", names, responses=texts)
    request = SelectionRequest(
        kind, kind, seed, folder / "curated", None, (), "count", 3, None, parameters={}
    )
    select(request, folder / "out")
    return folder / "out"


def test_what_a_seed_drew_is_told_from_what_is_new(tmp_path):
    names = list("abcdefgh")
    drawn = sorted(names, key=lambda n: hashlib.sha256(f"1:{n}".encode()).hexdigest())
    old = arm_of(tmp_path / "old", names, "random", seed=1)
    fewer = [n for n in names if n != drawn[0]]
    new = arm_of(tmp_path / "new", fewer, "random", seed=1)
    change = compare_selections(old, new)
    assert (change.entered, change.left) == ({"drawn": 1}, {"record gone": 1})
    assert change.examples["entered"][0].record_id == drawn[3]
    assert change.examples["entered"][0].old_rank == 4
    back = compare_selections(new, old)
    assert (back.entered, back.left) == ({"new record": 1}, {"drawn": 1})
    other = arm_of(tmp_path / "other", names, "random", seed=2)
    assert [s["name"] for s in compare_selections(old, other).settings] == ["seed"]


def test_a_length_is_a_score_with_a_name_and_a_full_set_has_new_records(tmp_path):
    texts = ["x" * n for n in (9, 8, 7, 6)]
    old = arm_of(tmp_path / "old", list("abcd"), "longest", texts=texts)
    new = arm_of(tmp_path / "new", list("abcd"), "longest", texts=[*texts[:2], "x", "x" * 20])
    change = compare_selections(old, new)
    assert (change.entered, change.left) == ({"score rose": 1}, {"score fell": 1})
    assert "the cut moved from 7 to 8 (length of the response in characters)" in change.text()
    full = [arm_of(tmp_path / f"full-{n}", list("abcde"[:n]), "full") for n in (4, 5)]
    assert compare_selections(*full).entered == {"new record": 1}


def test_an_equal_selection_is_called_the_same(tmp_path):
    old = chosen(tmp_path, {"a": 0.9, "b": 0.8}, 1)
    assert compare_selections(old, old).text() == "The selection is the same 1 records as before."


def test_a_selection_that_kept_no_candidates_is_compared_without_guessing(tmp_path):
    old = chosen(tmp_path / "old", {"a": 0.9, "b": 0.8}, 1)
    (old / "candidates.parquet").unlink()
    new = chosen(tmp_path / "new", {"a": 0.7, "b": 0.8}, 1)
    assert compare_selections(old, new).entered == {"candidates unknown": 1}
    assert compare_selections(old, new).left == {"score fell": 1}


def test_only_selections_are_compared(tmp_path):
    old = chosen(tmp_path, {"a": 0.9, "b": 0.8}, 1)
    with pytest.raises(ArtefactError, match="not a selection"):
        compare_selections(old, tmp_path)
