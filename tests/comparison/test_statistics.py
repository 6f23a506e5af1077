"""Intervals that hold what they promise, on simulated arms with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from selectit_dagster.comparison.statistics import (
    RunSpread,
    estimate,
    holm,
    mcnemar,
    run_spread,
)
from selectit_dagster.evaluation.intervals import Questions


def simulated(
    generator: np.random.Generator,
    runs: int,
    questions: int,
    *,
    between_runs: float,
    effect: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Right/wrong answers of an arm and a baseline, (runs, Q) each.

    A question's difficulty is shared, arms differ by question, runs differ as a whole.
    """
    difficulty = generator.normal(0, 1, questions)
    by_question = generator.normal(effect, 0.3, questions)

    def answers(mean: np.ndarray) -> np.ndarray:
        shift = generator.normal(0, between_runs, (runs, 1))
        return (mean + shift + generator.normal(0, 1, (runs, questions)) > 0).astype(float)

    return answers(difficulty + by_question), answers(difficulty)


def estimated(
    arm: np.ndarray,
    baseline: np.ndarray | None,
    questions: Questions,
    seed: int = 0,
    resamples: int = 2000,
):
    spreads = [run_spread(a, questions) for a in (arm, baseline) if a is not None]
    return estimate(
        arm,
        baseline,
        questions,
        spreads,
        confidence=0.95,
        resamples=resamples,
        generator=np.random.default_rng(seed),
    )


@pytest.mark.parametrize(
    ("runs", "questions", "between_runs"),
    [(1, 200, 0.0), (3, 200, 0.0), (3, 200, 0.1), (3, 600, 0.1), (5, 400, 0.2)],
)
def test_95_percent_intervals_cover_the_truth_about_95_times_in_100(runs, questions, between_runs):
    generator = np.random.default_rng(20)
    repeats, covered, claimed = 500, 0, 0
    for repeat in range(repeats):
        arm, baseline = simulated(generator, runs, questions, between_runs=between_runs)
        found = estimated(arm, baseline, Questions.mean(questions), repeat, 400)
        covered += found.low <= 0.0 <= found.high
        claimed += found.p < 0.05
    # 93 to 97 %, give or take two standard errors of 500 repeats
    allowance = 2 * math.sqrt(0.05 * 0.95 / repeats)
    assert 0.93 - allowance <= covered / repeats <= 0.97 + allowance
    assert claimed / repeats <= 0.05 + allowance


def test_naive_resampling_of_three_runs_would_be_too_sure():
    """The reason for the correction: without it the same arms are covered far too rarely."""
    generator = np.random.default_rng(3)
    questions = Questions.mean(400)
    repeats, covered = 300, 0
    for _ in range(repeats):
        arm, baseline = simulated(generator, 3, 400, between_runs=0.2)
        values = arm.mean(axis=0) - baseline.mean(axis=0)
        draws = values.mean() + questions.draws(values, 400, generator)
        low, high = np.quantile(draws, [0.025, 0.975])
        covered += low <= 0.0 <= high
    assert covered / repeats < 0.85


def test_a_difference_of_the_detectable_size_is_found_80_times_in_100():
    generator = np.random.default_rng(5)
    count, repeats, found = 400, 400, 0
    # 1.96 + 0.84 standard errors of the mean of 400 differences with variance 2
    truth = 2.802 * math.sqrt(2 / count)
    for repeat in range(repeats):
        arm = generator.normal(truth, 1, (1, count))
        result = estimated(arm, generator.normal(0, 1, (1, count)), Questions.mean(count), repeat)
        assert result.detectable == pytest.approx(truth, rel=0.15)
        found += result.low > 0.0
    assert found / repeats == pytest.approx(0.8, abs=0.04)


def test_one_run_each_without_spread_is_the_classic_paired_bootstrap():
    generator = np.random.default_rng(1)
    arm, baseline = simulated(generator, 1, 300, between_runs=0.0, effect=0.4)
    found = estimated(arm, baseline, Questions.mean(300), resamples=20_000)
    values = (arm - baseline)[0]
    picks = np.random.default_rng(2).integers(0, 300, (20_000, 300))
    plain = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(plain.tolist(), abs=0.004)
    assert found.value == pytest.approx(values.mean())
    assert not found.covers_runs


def test_a_macro_average_weighs_groups_alike_and_resamples_within_them():
    groups = ["a"] * 90 + ["b"] * 10
    questions = Questions.macro(groups)
    scores = np.array([[1.0] * 90 + [0.0] * 10])
    assert float((scores @ questions.weights)[0]) == pytest.approx(0.5)
    # inside the groups nothing varies, so nothing is resampled
    assert not questions.draws(scores[0], 50, np.random.default_rng(0)).any()


def test_the_average_over_benchmarks_is_the_mean_of_their_scores():
    parts = [Questions.mean(4), Questions.macro(["x", "x", "y"])]
    both = Questions.average(parts)
    values = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    assert float(values @ both.weights) == pytest.approx((0.25 + 0.5) / 2)
    assert len(np.unique(both.strata)) == 3


def test_resampled_spread_is_the_standard_error():
    generator = np.random.default_rng(0)
    for values in (generator.normal(size=500), (generator.random(500) < 0.3).astype(float)):
        draws = Questions.mean(500).draws(values, 20_000, generator)
        assert draws.std() == pytest.approx(values.std(ddof=1) / math.sqrt(500), rel=0.03)


def test_run_spread_leaves_out_what_questions_carry():
    generator = np.random.default_rng(4)
    spreads = [
        run_spread(simulated(generator, 5, 200, between_runs=0.0)[0], Questions.mean(200)).variance
        for _ in range(200)
    ]
    # runs that do not differ: far below the 0.25 * (share of noise) / (5 * 200) of one mean
    assert np.mean(spreads) < 0.25 / (5 * 200) / 2


def test_an_arm_of_one_run_borrows_and_without_a_lender_says_so():
    lender = RunSpread(variance=0.02, doubt=0.03, degrees=2.0, known=True)
    borrowed = RunSpread.borrowed([(lender, 3), (RunSpread(0, 0, 1, known=False), 1)])
    assert borrowed == RunSpread(pytest.approx(0.06), pytest.approx(0.09), 2.0, known=True)
    assert not RunSpread.borrowed([]).known


def test_mcnemar_is_the_binomial_test_on_the_questions_that_differ():
    right = np.array([1.0] * 8 + [0.0] * 2 + [1.0] * 5)
    baseline = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 5)
    p, only_arm, only_baseline = mcnemar(right, baseline)
    by_hand = 2 * sum(math.comb(10, k) for k in range(3)) / 2**10
    assert (only_arm, only_baseline) == (8, 2)
    assert p == pytest.approx(by_hand)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels_ties_and_all(values):
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1].tolist())


DESIGNS = {
    "20 groups of one": [1] * 20,
    "9 groups of one": [1] * 9,
    "mixed": [1] * 9 + [2] * 9 + [5] * 9,
    "pairs": [2] * 27,
    "one question beside large groups": [1] + [50] * 4,
}


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("design", DESIGNS)
def test_macro_averages_over_small_groups_find_no_difference_between_equal_arms(design, runs):
    sizes = DESIGNS[design]
    questions = Questions.macro([f"g{g}" for g, size in enumerate(sizes) for _ in range(size)])
    generator = np.random.default_rng(6)
    repeats, claimed = 400, 0
    for repeat in range(repeats):
        arm, baseline = simulated(generator, runs, len(questions.weights), between_runs=0.0)
        found = estimated(arm, baseline, questions, repeat, 200)
        claimed += not found.low <= 0.0 <= found.high
    # 5 %, three standard errors of a binomial count, and the noise of 200 resamples
    assert claimed / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats) + 0.005


def test_equal_answers_of_a_few_questions_prove_nothing():
    for count in (1, 2, 3):
        arm, baseline = np.ones((1, count)), np.zeros((1, count))
        assert estimated(arm, baseline, Questions.mean(count)).p > 0.05


def test_the_only_effect_among_six_benchmarks_is_found_80_times_in_100_if_it_is_detectable():
    generator = np.random.default_rng(8)
    count, repeats, found = 200, 400, 0
    questions = Questions.mean(count)
    noise = generator.normal(0, math.sqrt(2), (1, count))
    truth = (
        estimate(
            noise,
            np.zeros((1, count)),
            questions,
            [RunSpread.fixed()] * 2,
            confidence=0.95,
            resamples=100,
            generator=generator,
            tests=6,
        ).detectable
        * math.sqrt(2)
        / noise.std(ddof=1)
    )
    for _ in range(repeats):
        values = generator.normal(0, math.sqrt(2), (6, count))
        values[0] += truth
        z = np.abs(values.mean(axis=1)) / (values.std(axis=1, ddof=1) / math.sqrt(count))
        p = [math.erfc(value / math.sqrt(2)) for value in z]
        smaller = sorted(value for value in p if value <= p[0])
        found += all((6 - place) * value < 0.05 for place, value in enumerate(smaller))
    assert abs(found / repeats - 0.8) <= 3 * math.sqrt(0.8 * 0.2 / repeats)
