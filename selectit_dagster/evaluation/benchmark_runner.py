"""One benchmark on one model: prompts that fit, batches, journal, scores.

A question that does not fit into the model's context even without worked examples is
``too_long``: it is stored, counted and named, has no score and does not enter the mean.
Whether it fits depends on the tokenizer alone, so all arms leave out the same questions. An
answer that no judge compared is ``not_judged``: because none is named, or because the pair
does not fit into the judge's context, which may happen to one arm alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation.answer_journal import Journal
from selectit_dagster.evaluation.intervals import Score, summarise
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Scored, Task
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.generation import Decoding, generate_batch
from selectit_dagster.inference.likelihood import (
    Options,
    continuation_batch,
    find_options,
    option_batch,
)
from selectit_dagster.inference.prompt_rows import Batch, Row

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """A question with the prompt that fits, its token ids and its number of examples."""

    question: Question
    prompt: Prompt
    ids: tuple[int, ...]
    shots: int


@dataclass(frozen=True)
class Result:
    """The result of one benchmark: a row per question, the score, and further facts."""

    rows: list[dict[str, Any]]
    score: Score | None
    too_long: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    scored: list[tuple[Question, Scored]] = field(default_factory=list)


def run_task(task: Task, engine: Engine, journal: Journal, *, seed: int, report: Report) -> Result:
    """Ask, decode or score, and summarise one benchmark.

    Parameters
    ----------
    task, engine, journal:
        The benchmark, the model, and where finished batches are kept.
    seed:
        Seed of sampled decoding.
    report:
        Called with questions done and questions in all.
    """
    questions = task.questions()
    asked, too_long = fit_prompts(task, questions, engine)
    if not asked:
        raise UserError(
            f"benchmark {task.benchmark.name}: no question fits into the model's context of "
            f"{engine.context} tokens",
            hint="use a model with a longer context, or fewer shots and max_new_tokens",
        )
    if task.chooses:
        outputs, facts = _choose(task, asked, engine, journal, report)
    else:
        outputs, facts = _generate(task, asked, engine, journal, seed, report)
    scored = task.score([a.question for a in asked], outputs, journal.keep)
    rows = [
        _row(a, s, "not_judged" if s.score is None else "ok")
        for a, s in zip(asked, scored, strict=True)
    ]
    rows += [
        _row(Asked(q, Prompt("", ""), (), 0), Scored("", "", None), "too_long") for q in too_long
    ]
    order = {question.question_id: place for place, question in enumerate(questions)}
    rows.sort(key=lambda row: order[row["question_id"]])
    fewer = sum(a.shots < task.shots for a in asked)
    facts |= {"shots": task.shots, "questions_with_fewer_shots": fewer, **task.facts()}
    if task.chats:
        facts |= {"form": "chat", "enable_thinking": task.benchmark.enable_thinking}
    if unjudged := [row["question_id"] for row in rows if row["status"] == "not_judged"]:
        facts["not_judged"] = unjudged
    pairs = [(a.question, s) for a, s in zip(asked, scored, strict=True)]
    names = [question.question_id for question in too_long]
    return Result(rows, _summary(task, pairs), names, facts, pairs)


def _summary(task: Task, pairs: Sequence[tuple[Question, Scored]]) -> Score | None:
    kept = [(q, s.score) for q, s in pairs if s.score is not None]
    if not kept:
        return None
    values, groups = [float(s) for _, s in kept], [q.group for q, _ in kept]
    return summarise(values, groups, metric=task.metric_name(), macro=task.macro)


def _row(asked: Asked, scored: Scored, status: str) -> dict[str, Any]:
    return {
        "question_id": asked.question.question_id,
        "group": asked.question.group,
        "prompt": asked.prompt.text,
        "output": scored.output,
        "answer": scored.answer,
        "reference": asked.question.reference,
        "score": scored.score,
        "status": status,
        "shots": asked.shots,
    }


def fit_prompts(
    task: Task, questions: Sequence[Question], engine: Engine
) -> tuple[list[Asked], list[Question]]:
    """Write each prompt with as many worked examples as fit; nothing is ever cut.

    Returns
    -------
    The questions that fit, and those that do not fit even without examples.
    """
    limit = task.longest_prompt(engine)
    special = not task.templated
    asked: list[Asked] = []
    too_long: list[Question] = []
    for question in questions:
        for shots in range(task.shots, -1, -1):
            prompt = task.written(question, shots, engine)
            ids = engine.encode(prompt.text, special=special)
            if len(ids) <= limit:
                share = f"{prompt.share}\x00{shots}"
                asked.append(Asked(question, Prompt(prompt.text, share), tuple(ids), shots))
                break
        else:
            too_long.append(question)
    return asked, too_long


def _generate(
    task: Task, asked: Sequence[Asked], engine: Engine, journal: Journal, seed: int, report: Report
) -> tuple[list[list[str]], dict[str, Any]]:
    """Return the texts of each question's samples, and counts of why they ended."""
    decoding = task.decoded()
    rows = [
        Row(f"{a.question.question_id}\x00{sample}", a.ids, _share(a, decoding))
        for a in asked
        for sample in range(decoding.samples)
    ]
    batches = engine.plan(rows, task.benchmark.batch_tokens, new_tokens=decoding.max_new_tokens)

    def work(batch: Batch) -> list[Any]:
        made = generate_batch(engine, rows, batch, decoding, seed=seed)
        return [[one.text, len(one.ids), one.finish] for one in made]

    done = _batches(batches, work, journal, report, len(rows), decoding.samples)
    texts = [
        [done[i * decoding.samples + s][0] for s in range(decoding.samples)]
        for i in range(len(asked))
    ]
    ends = [done[i][2] for i in range(len(rows))]
    facts = {
        "generated_tokens": sum(done[i][1] for i in range(len(rows))),
        "ended_by": {name: ends.count(name) for name in ("eos", "stop", "length")},
        "decoding": {k: v for k, v in vars(decoding).items() if k != "stop"},
        "stop": list(decoding.stop),
    }
    return texts, facts


def _share(asked: Asked, decoding: Decoding) -> str:
    # samples of one question share its whole prompt, which is more than questions share
    return asked.question.question_id if decoding.samples > 1 else asked.prompt.share


def _choose(
    task: Task, asked: Sequence[Asked], engine: Engine, journal: Journal, report: Report
) -> tuple[list[list[str]], dict[str, Any]]:
    """Return each question's option probabilities as JSON, and how they were found."""
    options = find_options(engine, asked[0].prompt.text, task.labels)
    if options.single:
        matrix = _last_position(task, asked, options, engine, journal, report)
    else:
        matrix = _whole_options(task, asked, engine, journal, report)
    shares = np.exp(matrix - matrix.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    texts = [
        [json.dumps({o: round(float(p), 6) for o, p in zip(task.labels, row, strict=True)})]
        for row in shares
    ]
    way = "last position" if options.single else "likelihood of the whole option"
    return texts, {"options": way, "option_tokens": list(options.tokens)}


def _last_position(
    task: Task,
    asked: Sequence[Asked],
    options: Options,
    engine: Engine,
    journal: Journal,
    report: Report,
) -> np.ndarray:
    """Return log-probabilities (questions, options) from one position per question."""
    rows = [Row(a.question.question_id, a.ids + options.lead, a.prompt.share) for a in asked]
    batches = engine.plan(rows, task.benchmark.batch_tokens)

    def work(batch: Batch) -> list[Any]:
        return [list(map(float, row)) for row in option_batch(engine, rows, batch, options.tokens)]

    done = _batches(batches, work, journal, report, len(rows), 1)
    return np.array([done[i] for i in range(len(rows))])


def _whole_options(
    task: Task, asked: Sequence[Asked], engine: Engine, journal: Journal, report: Report
) -> np.ndarray:
    """Return log-likelihoods (questions, options) of options of several tokens."""
    rows = []
    for a in asked:
        for label in task.labels:
            ids = engine.encode(f"{a.prompt.text} {label}")
            rows.append(
                Row(
                    f"{a.question.question_id}\x00{label}",
                    tuple(ids),
                    a.prompt.share,
                    max(1, len(ids) - len(a.ids)),
                )
            )
    batches = engine.plan(rows, task.benchmark.batch_tokens)

    def work(batch: Batch) -> list[Any]:
        return [value for value, _ in continuation_batch(engine, rows, batch)]

    done = _batches(batches, work, journal, report, len(rows), len(task.labels))
    return np.array([done[i] for i in range(len(rows))]).reshape(len(asked), len(task.labels))


def _batches(
    batches: Sequence[Batch],
    work: Callable[[Batch], list[Any]],
    journal: Journal,
    report: Report,
    rows: int,
    rows_per_question: int,
) -> dict[int, Any]:
    """Compute every batch that the journal does not have; return each row's value."""
    done: dict[int, Any] = {}
    for number, batch in enumerate(batches):
        values = journal.keep(str(number), partial(work, batch))
        done.update(zip(batch.indices, values, strict=True))
        report(len(done) // rows_per_question, rows // rows_per_question)
    return done
