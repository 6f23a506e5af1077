"""Evaluations of many runs as aligned matrices: runs by questions, per benchmark and arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.errors import ArtefactError, first_line
from selectit_dagster.evaluation.intervals import Floats, Questions

OWN_SHOTS = "the project's own"
UNTUNED = "base"
AVERAGE = "average"


@dataclass(frozen=True)
class Run:
    """One evaluated checkpoint: its arm, its training seed (None: not tuned), its folder."""

    arm: str
    seed: int | None
    folder: Path


@dataclass(frozen=True)
class BenchmarkScores:
    """All runs' scores on one benchmark.

    ``scores[arm]`` is (runs, Q) float64, the runs in the order in which they were given;
    the Q questions are the same, in the same order, for all. ``remarks`` say in what the
    benchmark was not asked as in the paper. ``not_judged`` counts the questions that are left
    out for all because some run's answer was not judged.
    """

    name: str
    metric: str
    questions: Questions
    scores: dict[str, Floats]
    groups: int
    remarks: tuple[str, ...] = ()
    not_judged: int = 0

    @property
    def count(self) -> int:
        """The number of questions."""
        return len(self.questions.weights)

    def run_means(self, arm: str) -> Floats:
        """Return the score of each of an arm's runs."""
        return np.asarray(self.scores[arm] @ self.questions.weights)

    @property
    def binary(self) -> bool:
        """Whether every outcome is right or wrong."""
        return all(np.isin(values, (0.0, 1.0)).all() for values in self.scores.values())


def load_benchmarks(runs: Sequence[Run]) -> list[BenchmarkScores]:
    """Read the evaluations and align them by question.

    Benchmarks without scores (answers that await a judge) are left out.

    Raises
    ------
    ArtefactError
        When an evaluation is missing, or two runs did not answer the same questions.
    """
    facts = [require_manifest(run.folder, made_by="the evaluation").details for run in runs]
    tables = [dict(entry.get("scores", {})) for entry in facts]
    names = list(dict.fromkeys(name for table in tables for name in table))
    for run, entry, table in zip(runs, facts, tables, strict=True):
        known = {*table, *entry.get("unscored", ())}
        if lacking := [name for name in names if name not in known]:
            raise ArtefactError(
                f"{run.folder} has no benchmark {lacking[0]}, which other arms were asked",
                hint="evaluate every arm on the same benchmarks",
            )
    scored = [n for n in names if all(t.get(n, {}).get("score") is not None for t in tables)]
    asked = dict(facts[0].get("benchmarks", {}))
    aligned = (
        _aligned(n, runs, [t[n] for t in tables], unlike_the_paper(n, asked.get(n, {})))
        for n in scored
    )
    return [benchmark for benchmark in aligned if benchmark.count]


def unlike_the_paper(name: str, facts: dict[str, Any]) -> tuple[str, ...]:
    """Return in what a benchmark's facts show it to be asked otherwise than in the paper."""
    left = len(facts.get("too_long", ()))
    remarks = {
        f"{facts.get('protocol')} protocol": facts.get("protocol", "paper") != "paper",
        "asked in the model's chat template": facts.get("form") == "chat",
        "worked examples written for this project": facts.get("worked_examples") == OWN_SHOTS,
        "instructions worded for this project": facts.get("task") == "tydiqa",
        f"{facts.get('questions_with_fewer_shots')} of {facts.get('questions')} questions "
        "with fewer worked examples, which did not fit": facts.get("questions_with_fewer_shots"),
        f"{left} questions did not fit and are left out": left,
    }
    return tuple(f"{name}: {remark}" for remark, holds in remarks.items() if holds)


def _aligned(
    name: str, runs: Sequence[Run], facts: Sequence[dict[str, Any]], remarks: tuple[str, ...]
) -> BenchmarkScores:
    """Return one benchmark's scores on the questions that every run's answer has one of.

    All runs must have been asked the same; a pair that only one run's judge could not read is
    left out for every run, so that the arms stay paired.
    """
    paths = [run.folder / f"{name}.parquet" for run in runs]
    tables = [_read(path) for path in paths]
    reference, groups, _ = tables[0]
    for path, (ids, _, _) in zip(paths, tables, strict=True):
        if len(ids) != len(reference) or (ids != reference).any():
            raise ArtefactError(
                f"{path} and {paths[0]} do not hold the same questions ({len(ids)} and "
                f"{len(reference)}, {len(np.intersect1d(ids, reference))} in common)",
                hint="arms are compared question by question: evaluate them alike",
            )
    is_macro = [
        _is_macro(fact, table[1], table[2], path)
        for fact, table, path in zip(facts, tables, paths, strict=True)
    ]
    judged = np.all([np.isfinite(values) for _, _, values in tables], axis=0)
    groups, macro = groups[judged], is_macro[0]
    scores: dict[str, list[Floats]] = {}
    for run, (_, _, values) in zip(runs, tables, strict=True):
        scores.setdefault(run.arm, []).append(values[judged])
    left_out = int((~judged).sum())
    if left_out:
        remarks = (*remarks, f"{name}: {left_out} questions that not every run's judge compared")
    return BenchmarkScores(
        name=name,
        metric=str(facts[0].get("metric", "score")),
        questions=Questions.macro(groups.tolist()) if macro else Questions.mean(int(judged.sum())),
        scores={arm: np.stack(values) for arm, values in scores.items()},
        groups=len(np.unique(groups)) if macro else 1,
        remarks=remarks,
        not_judged=left_out,
    )


def _is_macro(facts: dict[str, Any], groups: np.ndarray, values: Floats, path: Path) -> bool:
    """Tell whether the benchmark's score is the mean over its groups.

    The stored score decides: it must come out of the stored questions one way or the other.
    """
    score, scored = float(facts["score"]), np.isfinite(values)
    values, groups = values[scored], groups[scored]
    macro = float(values @ Questions.macro(groups.tolist()).weights)
    if np.isclose(values.mean(), score, rtol=0, atol=1e-6):
        return facts.get("aggregate") == "macro" and bool(np.isclose(macro, score, atol=1e-6))
    if np.isclose(macro, score, rtol=0, atol=1e-6):
        return True
    raise ArtefactError(
        f"{path}: the stored score {score:.6f} is neither the mean of its questions "
        f"({values.mean():.6f}) nor that of its groups ({macro:.6f})",
        hint="evaluate that arm again",
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, Floats]:
    """Return question ids (sorted), groups and scores of one benchmark of one run.

    A question that did not fit the model is left out; one that was not judged has NaN.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        known = set(pq.read_schema(path).names)
        names = ["question_id", "group", "score", *(known & {"status"})]
        table = pq.read_table(path, columns=names)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtefactError(
            f"{path} cannot be read as benchmark outputs: {first_line(error)}",
            hint="evaluate that arm again",
        ) from error
    scores = table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    asked = np.isfinite(scores)
    if "status" in known:
        asked |= np.asarray(table["status"].to_pylist(), dtype=object) == "not_judged"
    ids = np.asarray(table["question_id"].to_pylist(), dtype=str)[asked]
    groups = np.asarray([value or "" for value in table["group"].to_pylist()], dtype=str)[asked]
    scores = scores[asked]
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    if not np.isfinite(scores).any() or (ids[1:] == ids[:-1]).any():
        raise ArtefactError(
            f"{path} holds no scored question, or one twice", hint="evaluate that arm again"
        )
    return ids, groups[order], scores[order]
