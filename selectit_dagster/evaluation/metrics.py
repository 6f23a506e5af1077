"""The benchmarks' scores as ``evaluate.Metric`` classes, which need no network.

This module is imported inside functions only: ``evaluate`` pulls in every pipeline of
transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets  # noqa: TID253 - see the module's docstring
import evaluate  # noqa: TID253

from selectit_dagster.evaluation import answer_extraction

_TEXTS = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}


class RuleMetric(evaluate.Metric):
    """A metric that is the mean of one rule over all pairs of answer and reference.

    ``compute`` returns ``{name: mean, "scores": one value in [0, 1] per pair}``.
    """

    result: ClassVar[str] = "score"
    summary: ClassVar[str] = ""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - the library's own arguments
        # in memory: several evaluations at once would share a cache file
        super().__init__(keep_in_memory=True, **kwargs)

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer, in [0, 1]."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description="predictions and references: lists of texts of equal length",
            features=datasets.Features(_TEXTS),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        scores = [self.rule(p, r) for p, r in zip(predictions, references, strict=True)]
        return {self.result: sum(scores) / len(scores) if scores else 0.0, "scores": scores}


class ExactMatch(RuleMetric):
    """Equal but for blanks around."""

    result = "exact_match"
    summary = "share of answers equal to the reference, blanks around both ignored"

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        return answer_extraction.exact_score(answer, reference)


class PlainExactMatch(RuleMetric):
    """Equal without case and punctuation (paper protocol of GSM8K and BBH)."""

    result = "exact_match"
    summary = "share of answers equal to the reference without case and ASCII punctuation"

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        return answer_extraction.plain_score(answer, reference)


class NumberMatch(RuleMetric):
    """Equal as numbers (strict protocol of GSM8K)."""

    result = "exact_match"
    summary = "share of answers that are the reference's number"

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        return answer_extraction.gsm8k_score(answer, reference, "strict")


class OptionMatch(RuleMetric):
    """Equal option letter, or equal text (strict protocol of BBH)."""

    result = "exact_match"
    summary = "share of answers with the reference's option letter, or its text"

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        return answer_extraction.bbh_score(answer, reference, "strict")


class Accuracy(RuleMetric):
    """Right option (MMLU)."""

    result = "accuracy"
    summary = "share of questions whose most likely option is the right one"

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        return answer_extraction.exact_score(answer, reference)


class AnswerF1(RuleMetric):
    """SQuAD's F1 of tokens; references are JSON lists of texts (paper protocol of TyDiQA)."""

    result = "f1"
    summary = "mean F1 of tokens, the best over each question's references"

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        return answer_extraction.tydiqa_score(answer, json.loads(reference), "paper")


class StrictAnswerF1(AnswerF1):
    """The same with punctuation of every script (strict protocol of TyDiQA)."""

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        return answer_extraction.tydiqa_score(answer, json.loads(reference), "strict")


class PassAtK(RuleMetric):
    """Unbiased pass@k; predictions are JSON lists of passed (true) and failed samples."""

    result = "pass_at_k"
    summary = "mean unbiased estimate of pass@k; references hold k"

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        passed: list[bool] = json.loads(answer)
        return answer_extraction.pass_at_k(len(passed), sum(passed), int(reference))


class PreferenceRate(RuleMetric):
    """Share of comparisons that the judged answer wins; a draw counts half."""

    result = "win_rate"
    summary = "mean preference for the model's output over the reference output"

    @staticmethod
    def rule(answer: str, reference: str) -> float:
        """Return the score of one answer."""
        return float(answer)


METRICS: dict[str, type[RuleMetric]] = {
    "exact-match": ExactMatch,
    "plain-exact-match": PlainExactMatch,
    "number-match": NumberMatch,
    "option-match": OptionMatch,
    "accuracy": Accuracy,
    "answer-f1": AnswerF1,
    "strict-answer-f1": StrictAnswerF1,
    "pass-at-k": PassAtK,
    "win-rate": PreferenceRate,
}


def score_all(name: str, answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return one score in [0, 1] per answer, through the metric ``name``."""
    if not answers:
        return []
    result = METRICS[name]().compute(predictions=list(answers), references=list(references))
    return [float(score) for score in result["scores"]]
