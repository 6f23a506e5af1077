"""The benchmarks' scores as one ``evaluate.Metric`` over a table of rules; no network.

This module is imported inside functions only: ``evaluate`` pulls in every pipeline of
transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import datasets  # noqa: TID253 - see the module's docstring
import evaluate  # noqa: TID253

from selectit_dagster.evaluation import answer_extraction as rules

_TEXTS = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}


def _passed(answer: str, reference: str) -> float:
    """Return pass@k of a JSON list of passed (true) and failed samples; the reference is k."""
    samples: list[bool] = json.loads(answer)
    return rules.pass_at_k(len(samples), sum(samples), int(reference))


# by name: what the mean is called, the score in [0, 1] of one answer, what the mean says
RULES: dict[str, tuple[str, Callable[[str, str], float], str]] = {
    "exact-match": (
        "exact_match",
        rules.exact_score,
        "share of answers equal to the reference, blanks around both ignored",
    ),
    "plain-exact-match": (
        "exact_match",
        rules.plain_score,
        "share of answers equal to the reference without case and ASCII punctuation",
    ),
    "number-match": (
        "exact_match",
        lambda answer, reference: rules.gsm8k_score(answer, reference, "strict"),
        "share of answers that are the reference's number",
    ),
    "option-match": (
        "exact_match",
        lambda answer, reference: rules.bbh_score(answer, reference, "strict"),
        "share of answers with the reference's option letter, or its text",
    ),
    "accuracy": (
        "accuracy",
        rules.exact_score,
        "share of questions whose most likely option is the right one",
    ),
    "answer-f1": (
        "f1",
        lambda answer, reference: rules.tydiqa_score(answer, json.loads(reference), "paper"),
        "mean F1 of tokens, the best over each question's references (a JSON list)",
    ),
    "strict-answer-f1": (
        "f1",
        lambda answer, reference: rules.tydiqa_score(answer, json.loads(reference), "strict"),
        "the same with punctuation of every script",
    ),
    "pass-at-k": ("pass_at_k", _passed, "mean unbiased estimate of pass@k"),
    "win-rate": (
        "win_rate",
        lambda answer, _: float(answer),
        "mean preference for the model's output over the reference output; a draw is a half",
    ),
}


class RuleMetric(evaluate.Metric):
    """The mean of one rule over all pairs of answer and reference.

    ``compute`` returns ``{name: mean, "scores": one value in [0, 1] per pair}``.
    """

    def __init__(self, name: str) -> None:
        self.mean_name, self.rule, self.summary = RULES[name]
        # in memory: several evaluations at once would share a cache file
        super().__init__(config_name=name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description="predictions and references: lists of texts of equal length",
            features=datasets.Features(_TEXTS),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        scores = [self.rule(p, r) for p, r in zip(predictions, references, strict=True)]
        return {self.mean_name: sum(scores) / len(scores) if scores else 0.0, "scores": scores}


def score_all(name: str, answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return one score in [0, 1] per answer, through the metric ``name``."""
    if not answers:
        return []
    result = RuleMetric(name).compute(predictions=list(answers), references=list(references))
    return [float(score) for score in result["scores"]]
