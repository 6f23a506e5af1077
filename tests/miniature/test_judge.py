"""The judge: areas, shares and levels against hand-made cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.miniature import judge

pytestmark = pytest.mark.slow  # what made the miniature world is a tool, no part of the package

scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)


@given(scores, scores)
def test_area_equals_the_share_of_pairs_won_with_ties_as_half(higher, lower):
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in higher for b in lower]
    assert judge.area_under_curve(higher, lower) == pytest.approx(sum(won) / len(won))


def test_area_without_one_of_the_kinds_is_refused():
    with pytest.raises(ValueError, match="records of both kinds"):
        judge.area_under_curve([1.0], [])


def test_verdict_counts_the_selected_and_parts_right_from_wrong():
    quality = {"a": "right", "b": "right", "c": "wrong", "d": "untidy", "e": "wrong"}
    marks = {"a": 5.0, "b": 2.0, "c": 1.0, "d": 3.0, "e": 4.0}
    verdict = judge.judge("model", "fused", marks, quality, share=0.4)
    assert verdict.selected == {"right": 1, "wrong": 1}
    assert verdict.share_right == 0.5
    assert verdict.right_against_wrong == 0.75
    assert verdict.right_against_rest == pytest.approx(4 / 6)


def test_given_selection_is_judged_instead_of_the_top():
    quality = {"a": "right", "b": "wrong"}
    verdict = judge.judge("model", "fused", {"a": 5.0, "b": 1.0}, quality, selected=["b"])
    assert verdict.share_right == 0.0


def test_every_level_of_every_model_gets_a_line():
    quality = {"a": "right", "b": "wrong"}
    token = {"small": {"a": np.array([5.0, 4.0]), "b": np.array([1.0, 2.0])}}
    verdicts = judge.judge_levels(token, {"small": {"a": 4.5, "b": 1.5}}, {"a": 4, "b": 1}, quality)
    assert [(v.level, v.model) for v in verdicts] == [
        ("token", "small"), ("sentence", "small"), ("model", "fused"),
    ]  # fmt: skip
    assert len(judge.table(verdicts).splitlines()) == 5
