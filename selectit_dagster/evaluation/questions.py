"""The benchmarks' questions as text, so that training data can be cleared of them.

All test questions of a benchmark are gathered, also those that an evaluation's sample leaves
out: what is held out does not depend on how many questions are asked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    make_or_current,
)
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import Benchmark
from selectit_dagster.progress import Progress, Silent

QUESTIONS = "questions.parquet"


@dataclass(frozen=True)
class QuestionsRequest:
    """The benchmarks whose questions are wanted."""

    benchmarks: tuple[Benchmark, ...]


def questions_fingerprint(request: QuestionsRequest) -> Fingerprint:
    """Return what the questions depend on: each benchmark's task and data."""
    from selectit_dagster.evaluation.tasks import make_task

    return {
        "stage": "questions",
        "format": 1,
        "benchmarks": {
            benchmark.name: {"task": benchmark.task, **make_task(benchmark).data_identity()}
            for benchmark in request.benchmarks
        },
    }


def collect_questions(
    request: QuestionsRequest, out: Path, progress: Progress | None = None
) -> Manifest:
    """Write ``questions.parquet`` (benchmark, question_id, text) and return its manifest.

    Raises
    ------
    UserError
        When a benchmark's data is missing, broken, or names two questions alike.
    """
    from selectit_dagster.evaluation.tasks import make_task

    progress = progress or Silent()

    def make() -> Content:
        import pyarrow as pa

        rows: list[dict[str, str]] = []
        counts: dict[str, int] = {}
        total = len(request.benchmarks)
        for done, benchmark in enumerate(request.benchmarks):
            progress.update(done, total)
            questions = make_task(benchmark).all_questions()
            refuse_double_ids(benchmark.name, [q.question_id for q in questions])
            rows += [
                {"benchmark": benchmark.name, "question_id": q.question_id, "text": q.text}
                for q in questions
            ]
            counts[benchmark.name] = len(questions)
        progress.update(total, total)
        schema = pa.schema([(name, pa.string()) for name in ("benchmark", "question_id", "text")])
        write_parquet(out / QUESTIONS, pa.Table.from_pylist(rows, schema))
        return Content(files=[QUESTIONS], counts={**counts, "questions": len(rows)})

    fingerprint = questions_fingerprint(request)
    return make_or_current(out, kind="questions", fingerprint=fingerprint, make=make)


def refuse_double_ids(name: str, ids: list[str]) -> None:
    """Raise a UserError naming an id that occurs twice."""
    if not ids:
        raise UserError(
            f"benchmark {name} has no questions", hint="look at the file that its path names"
        )
    value, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"benchmark {name}: question id {value!r} occurs {times} times",
            hint="give every question an id of its own, or leave the ids out",
        )
