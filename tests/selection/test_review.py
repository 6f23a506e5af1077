"""Marks of people: read, made to count, drawn for, and compared with the rater."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.selection.review import agreement, auc, draw_sample, kappa, read_review

from .stored import chosen

RATINGS = {name: 0.9 - i / 20 for i, name in enumerate("abcdefgh")}


def write(path, **marks):
    lines = [json.dumps({"record_id": name, "mark": mark}) for name, mark in marks.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def ids(folder):
    import pyarrow.parquet as pq

    return pq.read_table(folder / "dataset.parquet")["record_id"].to_pylist()


def test_marks_count_and_each_is_named_in_the_manifest(tmp_path):
    review = write(tmp_path / "review.jsonl", g="keep", a="drop", b="unsure", nowhere="keep")
    folder = chosen(tmp_path, RATINGS, 3, review=review)
    assert ids(folder) == ["g", "b", "c"]
    manifest = read_manifest(folder)
    assert manifest.details["review"] == {"keep": ["g", "nowhere"], "drop": ["a"], "unsure": ["b"]}
    assert "review" in manifest.fingerprint
    # as many as are left, where people dropped too many
    everything = write(tmp_path / "all.jsonl", **dict.fromkeys("abcdefg", "drop"))
    assert ids(chosen(tmp_path / "few", RATINGS, 3, review=everything)) == ["h"]


def test_marks_that_drop_every_record_are_refused(tmp_path):
    nothing = write(tmp_path / "review.jsonl", **dict.fromkeys(RATINGS, "drop"))
    with pytest.raises(UserError, match="nothing can be chosen") as refusal:
        chosen(tmp_path, RATINGS, 3, review=nothing)
    assert "selection.review" in refusal.value.hint
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_selection_without_review_keeps_its_fingerprint(tmp_path):
    assert "review" not in read_manifest(chosen(tmp_path, RATINGS, 3)).fingerprint


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"record_id": 1, "mark": "keep"}', '{"mark": "keep"}']
)
def test_a_line_that_is_no_mark_is_named(tmp_path, line):
    path = tmp_path / "review.jsonl"
    path.write_text('{"record_id": "a", "mark": "keep"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=r"review\.jsonl, line 3: .* is no mark"):
        read_review(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_review(tmp_path / "absent.jsonl")


def test_a_sample_has_records_of_every_part_of_the_ranking(tmp_path):
    ratings = {f"r{i:02d}": 0.99 - i / 100 for i in range(40)}
    chosen(tmp_path, ratings, 5)
    drawn = draw_sample(tmp_path / "ranking", 20, seed=1)
    assert len(set(drawn)) == 20
    tenths = sorted(int(name[1:]) // 4 for name in drawn)
    assert tenths == [i for i in range(10) for _ in range(2)]
    assert drawn != sorted(drawn) and drawn == draw_sample(tmp_path / "ranking", 20, seed=1)
    assert drawn != draw_sample(tmp_path / "ranking", 20, seed=2)
    assert len(draw_sample(tmp_path / "ranking", 100, seed=1)) == 40


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_the_area_is_the_share_of_pairs_in_the_right_order(pairs):
    wanted, score = np.array([w for w, _ in pairs]), np.array([float(s) for _, s in pairs])
    good, bad = score[wanted], score[~wanted]
    if not len(good) or not len(bad):
        assert np.isnan(auc(wanted, score))
        return
    counted = [1.0 if g > b else 0.5 if g == b else 0.0 for g, b in product(good, bad)]
    assert auc(wanted, score) == pytest.approx(np.mean(counted))


def test_kappa_is_cohens():
    first = np.array([True] * 25 + [False] * 25)
    second = np.array([True] * 20 + [False] * 5 + [True] * 10 + [False] * 15)
    assert kappa(first, second) == pytest.approx(0.4)
    assert np.isnan(kappa(np.ones(3, bool), np.ones(3, bool)))


def test_agreement_says_where_people_and_rater_differ(tmp_path):
    chosen(tmp_path, RATINGS, 4)
    marks = read_review(
        write(
            tmp_path / "r", a="keep", b="keep", c="drop", g="keep", h="drop", d="unsure", x="keep"
        )
    )
    found = agreement(marks, tmp_path / "curated", tmp_path / "ranking", 4)
    facts = ("judged", "keep", "drop", "unsure", "not_ranked", "agree")
    assert [found[name] for name in facts] == [5, 3, 2, 1, 1, 3]
    value, low, high = found["auc"]
    assert value == pytest.approx(5 / 6) and low <= value <= high
    assert found["kappa"][0] == pytest.approx((3 / 5 - 13 / 25) / (1 - 13 / 25))
    worst = found["kinds"][0]
    assert worst["people keep, rater leaves out"] + worst["people drop, rater takes"] == 2
    assert agreement({}, tmp_path / "curated", tmp_path / "ranking", 4) is None
