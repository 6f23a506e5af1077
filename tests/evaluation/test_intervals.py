"""Scores and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from selectit_dagster.evaluation.intervals import summarise, wilson


def test_wilson_agrees_with_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    for right, total in ((0, 10), (3, 10), (200, 200), (7013, 14042)):
        assert wilson(right, total) == pytest.approx(
            proportion_confint(right, total, method="wilson"), abs=1e-9
        )


def test_right_and_wrong_answers_have_wilsons_interval():
    result = summarise([1.0, 0.0, 1.0, 1.0], [""] * 4, metric="exact-match", macro=False)
    assert result.score == 0.75
    assert result.interval == wilson(3, 4)
    assert result.n == 4


def test_a_macro_average_is_the_mean_of_the_groups_means():
    result = summarise([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], metric="f1", macro=True)
    assert result.score == 0.5
    assert result.groups == {"a": 1.0, "b": 0.0}


def test_the_bootstrap_is_seeded_and_as_wide_as_theory_says():
    values = np.random.default_rng(0).random(400)
    first = summarise(values, [""] * 400, metric="f1", macro=False)
    again = summarise(values, [""] * 400, metric="f1", macro=False)
    assert first == again
    half = 1.96 * values.std() / 20
    low, high = first.interval
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_groups_of_one_question_give_an_interval_that_covers_the_truth():
    generator = np.random.default_rng(2)
    repeats, covered = 300, 0
    for _ in range(repeats):
        values = (generator.random(20) < 0.4).astype(float)
        found = summarise(values, [f"g{i}" for i in range(20)], metric="em", macro=True)
        covered += found.interval[0] <= 0.4 <= found.interval[1]
    assert covered / repeats >= 0.95 - 3 * (0.95 * 0.05 / repeats) ** 0.5
    assert "20 small groups" in found.interval_method
