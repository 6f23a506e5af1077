"""Reading answers and comparing them, with the known faults and their absence."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selectit_dagster.evaluation import answer_extraction


def gsm8k(output: str, reference: str, protocol: str = "strict") -> float:
    """Return what an output scores."""
    answer = answer_extraction.gsm8k_answer(output, protocol)
    return answer_extraction.gsm8k_score(answer, reference, protocol)


def bbh(output: str, reference: str, protocol: str = "strict") -> float:
    """Return what an output scores."""
    answer = answer_extraction.bbh_answer(output, protocol)
    return answer_extraction.bbh_score(answer, reference, protocol)


@pytest.mark.parametrize(
    ("output", "paper", "strict"),
    [
        ("There are 3 + 4 = 7 apples. The answer is 7.", "7", "7"),
        ("It costs $1,234 in all. The answer is $1,234.", "1234", "1234"),
        ("He owes 50. The answer is -50.", "50", "-50"),
        ("The answer is 3.6 litres", "3.6", "3.6"),
        ("So $x = 72$. The answer is $\\boxed{72}$.", "72", "72"),
        ("The answer is: **1,024**", "1024", "1024"),
        ("The final answer is \\(-3\\).", "3", "-3"),
        ("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "72", "72"),
        ("The answer is 6.\n\nQuestion: What is 9 minus 2? Answer: The answer is 7.", "7", "6"),
        ("I have 5 apples and no idea", "5", ""),
        ("no number at all", "no number at all", ""),
    ],
)
def test_gsm8k_reads_the_number_of_each_protocol(output, paper, strict):
    assert answer_extraction.gsm8k_answer(output, "paper") == paper
    assert answer_extraction.gsm8k_answer(output, "strict") == strict


def test_the_paper_protocol_keeps_its_faults_and_strict_has_none():
    assert answer_extraction.gsm8k_score("50", "-50", "paper") == 1.0
    assert answer_extraction.gsm8k_score("3.6", "36", "paper") == 1.0
    assert answer_extraction.bbh_score("] )", "} >", "paper") == 1.0
    assert answer_extraction.gsm8k_score("50", "-50", "strict") == 0.0
    assert answer_extraction.gsm8k_score("3.6", "36", "strict") == 0.0
    assert answer_extraction.bbh_score("] )", "} >", "strict") == 0.0


def test_strict_numbers_compare_by_value():
    assert answer_extraction.gsm8k_score("18.00", "18", "strict") == 1.0
    assert answer_extraction.gsm8k_score("", "18", "strict") == 0.0


def test_gsm8k_reference_is_the_number_after_the_mark():
    assert answer_extraction.gsm8k_reference("She has 2,000.\n#### 2,125") == "2125"


@pytest.mark.parametrize(
    ("output", "reference", "paper", "strict"),
    [
        ("Let's think. So the answer is (B).", "(B)", 1.0, 1.0),
        ("So the answer is (B) because it is red.", "(B)", 0.0, 1.0),
        ("So the answer is B.", "(B)", 1.0, 1.0),
        ("(B)", "(B)", 1.0, 0.0),
        ("So the answer is yes.", "Yes", 1.0, 1.0),
        ("So the answer is -3.5. Done.", "-3.5", 0.0, 1.0),
        ("So the answer is ] ).", "] )", 1.0, 1.0),
        ("So the answer is ] ).", "} >", 1.0, 0.0),
        ("So the answer is fox  the dog", "fox the dog", 0.0, 1.0),
        ("Yes\n\nQ: and now?", "Yes", 1.0, 0.0),
    ],
)
def test_bbh_scores_an_output_by_each_protocol(output, reference, paper, strict):
    assert (bbh(output, reference, "paper"), bbh(output, reference)) == (paper, strict)


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("the Fox!", ["fox"], 1.0),
        ("a quick fox", ["quick brown fox"], 0.8),
        ("dog", ["fox", "dog"], 1.0),
        ("", ["fox"], 0.0),
    ],
)
def test_tydiqa_f1_is_the_best_over_the_references(answer, references, expected):
    assert answer_extraction.tydiqa_score(answer, references) == pytest.approx(expected)


def test_strict_f1_drops_punctuation_of_every_script():
    assert answer_extraction.tydiqa_score("পাখি।", ["পাখি"], "paper") == 0.0
    assert answer_extraction.tydiqa_score("পাখি।", ["পাখি"], "strict") == 1.0


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
words = st.lists(st.sampled_from(["fox", "dog", "cat", "7"]), max_size=6).map(" ".join)


@patient
@given(words, words)
def test_f1_is_symmetric_bounded_and_one_for_equal_texts(left, right):
    value = answer_extraction.token_f1(left, right)
    assert 0.0 <= value <= 1.0
    assert value == answer_extraction.token_f1(right, left)
    assert not left or answer_extraction.token_f1(left, left) == 1.0


@patient
@given(st.integers(1, 30), st.data())
def test_pass_at_k_equals_the_binomial_formula(samples, data):
    passed = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    expected = 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)
    assert answer_extraction.pass_at_k(samples, passed, k) == pytest.approx(expected)


def test_metrics_give_the_rules_scores_and_their_mean():
    from selectit_dagster.evaluation.metrics import RuleMetric, score_all

    assert score_all("plain-exact-match", ["A!", "b"], ["a", "c"]) == [1.0, 0.0]
    assert score_all("pass-at-k", [json.dumps([True, False])], ["1"]) == [0.5]
    metric = RuleMetric("answer-f1")
    metric.add_batch(predictions=["fox"], references=['["fox", "dog"]'])
    metric.add_batch(predictions=["cat"], references=['["fox"]'])
    assert metric.compute() == {"f1": 0.5, "scores": [1.0, 0.0]}


def test_published_gsm8k_solutions_score_all_right(shared_data):
    lines = (shared_data / "bench/gsm8k/test.jsonl").read_text().splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    for protocol in ("paper", "strict"):
        right = sum(gsm8k(s, answer_extraction.gsm8k_reference(s), protocol) for s in solutions)
        assert right == len(solutions) == 1319


@pytest.mark.parametrize(
    "output",
    [
        "The answer is 3 * 6 = 18.",
        "3 * 6 = 18",
        "x = 18",
        "The answer is x = 18.",
        "She pays 3 * 6 dollars. The answer is US$18.",
        "US$18",
        "So it is $\\boxed{18}$.",
        "\\boxed{x = 18}",
        "The answer is approximately 18 apples.",
        "approximately 18",
        "The answer is 18 (since 18 = 3 * 6).",
        "**Answer:** 18",
        "The answer is not 5. The answer is 18!",
        "The answer is \\(18\\).",
    ],
)
def test_strict_gsm8k_reads_the_number_however_it_is_stated(output):
    assert gsm8k(output, "18") == 1.0


def test_strict_gsm8k_knows_the_unicode_minus_and_asks_for_a_statement():
    assert answer_extraction.gsm8k_answer("The answer is \u221218.", "strict") == "-18"
    assert answer_extraction.gsm8k_answer("Then she has 18 left over for", "strict") == ""


@pytest.mark.parametrize(
    ("output", "reference", "right"),
    [
        ("the answer is option (B).", "(B)", True),
        ("the answer is [B].", "(B)", True),
        ("So the answer is $\\boxed{(B)}$.", "(B)", True),
        ("The answer is Option B, because it fits.", "(B)", True),
        ("the answer is (B) 5 apples.", "(B)", True),
        ("the answer is A lot of things.", "(A)", False),
        ("the answer is (A), not (B).", "(B)", False),
        ("the answer is yes, because he turned.", "Yes", True),
        ("the answer is not valid.", "valid", False),
        ("the answer is \u221224.", "-24", True),
        ("the answer is 24.", "-24", False),
        ("the answer is ) ] >.", ") ] >", True),
    ],
)
def test_strict_bbh_reads_options_judgements_and_numbers(output, reference, right):
    assert bbh(output, reference) == float(right)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("U.S.", "US"),
        ("1,200", "1200"),
        ("«Сибирь»", "сибирь"),
        ("the U.K.", "UK"),
        ("৩,০০০", "৩০০০"),
    ],
)
def test_strict_tydiqa_drops_marks_without_a_trace(one, other):
    assert answer_extraction.tydiqa_score(one, [other], "strict") == 1.0
