"""The equations: the paper's example, bounds, invariances, and a naive loop as the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selectit_dagster.rating import levels

logits = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 9)),
    elements=st.floats(-30, 30, width=32),
)


def naive_token_level(p: list[float], second_softmax: bool) -> float:
    if second_softmax:
        e = [math.exp(x) for x in p]
        p = [x / sum(e) for x in e]
    best = max(range(len(p)), key=lambda k: p[k])
    total = 0.0
    for x in p:
        total += abs(x - p[best])
    return (best + 1) * total / (len(p) - 1)


def naive_sentence_level(s: list[float], alpha: float) -> float:
    mean = sum(s) / len(s)
    std = math.sqrt(sum((x - mean) ** 2 for x in s) / len(s))
    return mean / (1 + alpha * std)


def test_worked_example_of_the_paper() -> None:
    assert levels.token_level([0.05, 0.10, 0.50, 0.25, 0.10]) == pytest.approx(1.125)


@pytest.mark.parametrize("ratings", range(2, 10))
def test_a_uniform_distribution_scores_nothing_and_certainty_scores_the_rating(
    ratings: int,
) -> None:
    assert levels.token_level(np.full(ratings, 1 / ratings)) == 0
    np.testing.assert_allclose(levels.token_level(np.eye(ratings)), np.arange(1, ratings + 1))


def test_second_softmax_confines_the_released_score() -> None:
    best = levels.token_level(np.eye(5)[4], "released-code")
    e = math.e
    assert best == pytest.approx(5 * (e - 1) / (e + 4))
    assert round(float(best), 3) == 1.279


@settings(max_examples=60, deadline=None)
@given(logits, st.floats(0, 3), st.sampled_from(["paper", "released-code"]))
def test_equals_a_naive_loop(values: np.ndarray, alpha: float, variant: str) -> None:
    p = levels.rating_distribution(values)
    token = levels.token_level(p, variant)
    found = levels.record_score(p, alpha=alpha, variant=variant)
    for n in range(p.shape[0]):
        rows = [naive_token_level(list(row), variant == "released-code") for row in p[n]]
        np.testing.assert_allclose(token[n], rows, atol=1e-12)
        assert found[n] == pytest.approx(naive_sentence_level(rows, alpha), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(logits, st.floats(0, 3))
def test_bounds(values: np.ndarray, alpha: float) -> None:
    p = levels.rating_distribution(values)
    token = levels.token_level(p)
    sentence = levels.sentence_level(token, alpha)
    assert np.all((token >= 0) & (token <= p.shape[-1] + 1e-9))
    assert np.all(sentence <= token.max(axis=-1) + 1e-9)
    assert np.all(sentence >= 0)


@settings(max_examples=40, deadline=None)
@given(logits, st.randoms(use_true_random=False))
def test_order_of_prompts_and_records_does_not_matter(values: np.ndarray, random: object) -> None:
    p = levels.rating_distribution(values)
    score = levels.record_score(p)
    prompts = list(range(p.shape[1]))
    records = list(range(p.shape[0]))
    random.shuffle(prompts)  # type: ignore[attr-defined]
    random.shuffle(records)  # type: ignore[attr-defined]
    np.testing.assert_allclose(levels.record_score(p[:, prompts]), score, atol=1e-12)
    np.testing.assert_array_equal(levels.record_score(p[records]), score[records])


def test_logits_and_log_probabilities_give_the_same_distribution() -> None:
    vocabulary = np.random.default_rng(0).normal(size=50) * 4
    log_p = vocabulary - np.log(np.exp(vocabulary).sum())
    np.testing.assert_allclose(
        levels.rating_distribution(log_p[:5]), levels.rating_distribution(vocabulary[:5])
    )
    np.testing.assert_allclose(
        levels.rating_distribution(log_p[:5]), np.exp(log_p[:5]) / np.exp(log_p[:5]).sum()
    )


def test_disagreement_between_prompts_lowers_the_score() -> None:
    assert levels.sentence_level([1.0, 3.0], 0.2) == pytest.approx(2 / 1.2)
    assert levels.sentence_level([1.0, 3.0], 0.0) == 2
    assert levels.sentence_level([2.0, 2.0], 5.0) == 2


def test_prompts_that_were_not_asked_are_left_out() -> None:
    scores = levels.sentence_level([[1.0, 3.0, np.nan], [np.nan] * 3], 0.2)
    assert scores[0] == pytest.approx(2 / 1.2)
    assert np.isnan(scores[1])


def test_ablations_use_the_plain_rating() -> None:
    p = np.array([[[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]])
    assert levels.record_score(p, ablation="sentence-r") == pytest.approx([2 / 1.2])
    assert levels.record_score(p, ablation="model-r") == pytest.approx([2.0])


def test_models_weigh_as_much_as_they_have_parameters() -> None:
    s = np.array([[1.0, 2.0], [4.0, 4.0]])
    np.testing.assert_allclose(levels.model_level(s, [7e9, 13e9]), [(7 + 52) / 20, (14 + 52) / 20])
    released = levels.model_level(np.ones((3, 2)), levels.RELEASED_WEIGHTS, "released-code")
    np.testing.assert_allclose(released, 7 / 20 + 13 / 20 + 70 / 90)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(0, 9)
    ),
    st.data(),
)
def test_fusion_is_a_weighted_mean(s: np.ndarray, data: st.DataObject) -> None:
    theta = data.draw(st.lists(st.floats(0.1, 1e11), min_size=s.shape[0], max_size=s.shape[0]))
    fused = levels.model_level(s, theta)
    assert np.all(fused <= s.max(axis=0) + 1e-9)
    assert np.all(fused >= s.min(axis=0) - 1e-9)
    np.testing.assert_allclose(fused, levels.model_level(s[::-1], theta[::-1]), atol=1e-9)


def test_ties_go_to_the_earlier_record_or_as_released_to_the_later() -> None:
    assert levels.rank_order([1.0, 3.0, 1.0, 3.0]).tolist() == [1, 3, 0, 2]
    assert levels.rank_order([1.0, 3.0, 1.0, 3.0], "released-code").tolist() == [3, 1, 2, 0]
    scores = [0.5, 0.25, 0.5, 0.5, 0.0]
    naive = [i for _, i in sorted(((s, i) for i, s in enumerate(scores)), reverse=True)]
    assert levels.rank_order(scores, "released-code").tolist() == naive


@pytest.mark.parametrize("bad", [[1.0], [[1.0], [1.0]], 0.5])
def test_refuses_a_single_rating(bad: object) -> None:
    with pytest.raises(ValueError, match="R >= 2"):
        levels.token_level(bad)  # type: ignore[arg-type]


def test_refuses_weights_that_do_not_fit_and_scores_that_are_missing() -> None:
    with pytest.raises(ValueError, match="2 models but 1"):
        levels.model_level(np.ones((2, 3)), [1.0])
    with pytest.raises(ValueError, match="positive weight"):
        levels.model_level(np.ones((2, 3)), [1.0, -1.0])
    with pytest.raises(ValueError, match="without a score"):
        levels.rank_order([1.0, np.nan])
