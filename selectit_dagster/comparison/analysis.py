"""From aligned scores to findings: differences, verdicts, sentences, the best run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.comparison.score_matrices import AVERAGE, UNTUNED, BenchmarkScores, Run
from selectit_dagster.comparison.sentences import arm_sentence
from selectit_dagster.comparison.statistics import (
    Estimate,
    RunSpread,
    estimate,
    holm,
    mcnemar,
    run_spread,
)
from selectit_dagster.errors import UserError
from selectit_dagster.evaluation.intervals import Floats, Questions
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.experiment import ComparisonSection

_SILENT = Silent()


def compare_scores(
    benchmarks: Sequence[BenchmarkScores],
    runs: Sequence[Run],
    section: ComparisonSection,
    share: float | None = None,
    progress: Progress = _SILENT,
    titles: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return the whole comparison as JSON values.

    ``arms``: per arm its title, runs, seeds, sentence, and per benchmark (and for their
    average) a result. A result holds ``mean``, ``interval``, ``run_means`` and, but for the
    baseline, ``difference`` with ``low`` and ``high``, ``p``, ``p_holm``, ``test``,
    ``smallest_detectable``, ``verdict`` (``better``, ``worse``, ``not significant``).
    All are on the scores' own scale; ``scale`` is 100 where they lie between 0 and 1.

    Raises
    ------
    UserError
        When the baseline is not among the arms.
    """
    arms = list(dict.fromkeys(run.arm for run in runs))
    baseline = section.baseline
    if baseline not in arms:
        raise UserError(
            f"comparison.baseline {baseline!r} is not one of the arms: {', '.join(arms)}",
            hint="name one of them, or add that arm to selection.arms",
        )
    untuned = {run.arm for run in runs if run.seed is None or run.arm == UNTUNED}
    columns = [*benchmarks, *_average(benchmarks)]
    results: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    for done, column in enumerate(columns):
        spreads = arm_spreads(column, untuned)
        for arm in arms:
            results[arm][column.name] = _result(column, arm, spreads, section, len(columns))
        progress.update(done + 1, len(columns))
    titles = {arm: (titles or {}).get(arm, arm) for arm in arms}
    sentences = dict.fromkeys(arms, "")
    for arm in arms:
        if arm != baseline:
            _judge(results[arm], section.confidence)
            entries = [results[arm][benchmark.name] for benchmark in benchmarks]
            sentences[arm] = arm_sentence(titles[arm], titles[baseline], entries)
    if (best := champion(benchmarks, runs)) is not None:
        # over the benchmarks, of which there may be one
        best["interval"] = list(results[best["arm"]].values())[-1]["interval"]
    return {
        "arms": {
            arm: {
                "title": titles[arm],
                "runs": sum(run.arm == arm for run in runs),
                "seeds": [run.seed for run in runs if run.arm == arm],
                "results": results[arm],
                "sentence": sentences[arm],
            }
            for arm in arms
        },
        "baseline": baseline,
        "benchmarks": {
            benchmark.name: {
                "metric": benchmark.metric,
                "questions": benchmark.count,
                "groups": benchmark.groups,
                "right_wrong": benchmark.binary,
                "unlike_the_paper": list(benchmark.remarks),
                "not_judged": benchmark.not_judged,
                "small_groups": benchmark.questions.borrowing,
            }
            for benchmark in benchmarks
        },
        # two arms may bear one title and fare alike
        "sentences": [sentence for sentence in dict.fromkeys(sentences.values()) if sentence],
        "champion": best,
        "share": share,
        "method": _method(section, results, benchmarks),
    }


def _average(benchmarks: Sequence[BenchmarkScores]) -> list[BenchmarkScores]:
    """Return the mean over the benchmarks as a benchmark of its own, when there are several."""
    if len(benchmarks) < 2:
        return []
    return [
        BenchmarkScores(
            name=AVERAGE,
            metric="mean over the benchmarks",
            questions=Questions.average([benchmark.questions for benchmark in benchmarks]),
            scores={
                arm: np.concatenate([benchmark.scores[arm] for benchmark in benchmarks], axis=1)
                for arm in benchmarks[0].scores
            },
            groups=len(benchmarks),
        )
    ]


def arm_spreads(column: BenchmarkScores, untuned: set[str]) -> dict[str, RunSpread]:
    """Return each arm's run spread; an arm of one run borrows from those with several."""
    own = {arm: run_spread(scores, column.questions) for arm, scores in column.scores.items()}
    others = [(own[arm], len(column.scores[arm])) for arm in own if arm not in untuned]
    spreads = {}
    for arm, scores in column.scores.items():
        if arm in untuned:
            spreads[arm] = RunSpread.fixed()
        else:
            spreads[arm] = own[arm] if len(scores) > 1 else RunSpread.borrowed(others)
    return spreads


def _result(
    column: BenchmarkScores,
    arm: str,
    spreads: dict[str, RunSpread],
    section: ComparisonSection,
    tests: int,
) -> dict[str, Any]:
    """Return one arm's figures on one benchmark, all on the scale of the scores."""
    scores, baseline = column.scores[arm], section.baseline
    # the smallest p that resamples can give must be able to pass Holm's first step
    resamples = max(section.resamples, round(20 * tests / (1.0 - section.confidence)))

    def estimated(against: Floats | None, parts: list[RunSpread]) -> Estimate:
        # its own stream for each figure, so that adding an arm leaves the others as they are
        key = [section.seed, *f"{column.name}/{arm}/{against is None}".encode()]
        return estimate(
            scores,
            against,
            column.questions,
            parts,
            confidence=section.confidence,
            resamples=resamples,
            generator=np.random.default_rng(key),
            tests=tests,
        )

    mean = estimated(None, [spreads[arm]])
    within_one = all(v.min() >= 0 and v.max() <= 1 for v in column.scores.values())
    entry: dict[str, Any] = {
        "benchmark": column.name,
        "scale": 100 if within_one else 1,
        "mean": mean.value,
        "interval": [mean.low, mean.high],
        "run_means": column.run_means(arm).tolist(),
        "covers_runs": mean.covers_runs,
    }
    if arm == baseline:
        return entry
    reference = column.scores[baseline]
    gap = estimated(reference, [spreads[arm], spreads[baseline]])
    entry |= {
        "difference": gap.value,
        "low": gap.low,
        "high": gap.high,
        "standard_error": gap.standard_error,
        "smallest_detectable": gap.detectable,
        "p_bootstrap": gap.p,
        "covers_runs": gap.covers_runs,
        "p": gap.p,
        "test": "bootstrap",
    }
    single = len(scores) == len(reference) == 1 and column.groups == 1
    certain = spreads[arm].variance + spreads[baseline].variance == 0.0
    if single and certain and column.binary:
        # between two single runs McNemar's exact test is the one that counts
        exact, only_arm, only_baseline = mcnemar(scores[0], reference[0])
        counts = {"p": exact, "only_arm": only_arm, "only_baseline": only_baseline}
        entry |= {"p": exact, "test": "mcnemar", "mcnemar": counts}
    return entry


def _judge(results: dict[str, Any], confidence: float) -> None:
    """Add to each of an arm's results Holm's p, over the benchmarks and their average."""
    adjusted = holm([entry["p"] for entry in results.values()])
    for entry, value in zip(results.values(), adjusted, strict=True):
        entry["p_holm"] = value
        seen = value < 1.0 - confidence
        # the interval must agree, or the sentence would contradict its own figures
        if seen and entry["low"] > 0:
            entry["verdict"] = "better"
        elif seen and entry["high"] < 0:
            entry["verdict"] = "worse"
        else:
            entry["verdict"] = "not significant"


def champion(benchmarks: Sequence[BenchmarkScores], runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the best run of the tuned arm with the best average, or None without one.

    The arm is chosen by the mean over its runs, so that no arm wins by the luck of one run
    among many; of its runs the one with the best average is taken.
    """
    entries: dict[str, list[tuple[float, int, Run]]] = {}
    places: Counter[str] = Counter()
    for run in runs:
        at = places[run.arm]
        places[run.arm] += 1
        if run.seed is not None and run.arm != UNTUNED and benchmarks:
            average = float(np.mean([b.run_means(run.arm)[at] for b in benchmarks]))
            entries.setdefault(run.arm, []).append((average, at, run))
    if not entries:
        return None
    means = {
        arm: float(np.mean([average for average, *_ in some])) for arm, some in entries.items()
    }
    best_arm = max(means, key=lambda arm: means[arm])
    value, at, run = max(entries[best_arm], key=lambda entry: entry[0])
    return {
        "arm": run.arm,
        "seed": run.seed,
        "evaluation": str(run.folder),
        "average": value,
        "arm_average": means[best_arm],
        "scores": {b.name: float(b.run_means(run.arm)[at]) for b in benchmarks},
        "reason": f"the arm with the highest mean over its runs, of {len(means)} tuned arms, "
        "and of its runs the one with the highest average over the benchmarks. It was chosen on "
        "the reported test questions, so its own figures are optimistic.",
    }


def _method(
    section: ComparisonSection,
    results: dict[str, dict[str, Any]],
    benchmarks: Sequence[BenchmarkScores],
) -> dict[str, Any]:
    covered = all(entry["covers_runs"] for arm in results.values() for entry in arm.values())
    notes = [
        "paired over the same questions; intervals resample questions and training runs",
        "p (Holm): adjusted per arm, over the benchmarks and their average",
        "minimum detectable effect: the difference that the adjusted test finds in 80 of 100 "
        "trials when it is the only one",
    ]
    for benchmark in benchmarks:
        if few := benchmark.questions.borrowing:
            notes.append(
                f"{benchmark.name}: {few} of {benchmark.groups} groups have one or two questions "
                "and borrow the spread of all the benchmark's questions"
            )
        if benchmark.not_judged:
            notes.append(
                f"{benchmark.name}: {benchmark.not_judged} questions are left out for all arms, "
                "because not every run's answer was judged"
            )
    if not covered:
        notes.append(
            "some arms have one training run and none to borrow from: their intervals do not "
            "cover the spread between runs"
        )
    return {"notes": notes, "covers_runs": covered, **section.model_dump(mode="json")}
