"""One benchmark on one model: prompts that fit, batches, journal, scores.

A question that does not fit into the model's context even without worked examples is
``too_long``: it is stored, counted and named, has no score and does not enter the mean.
Whether it fits depends on the tokenizer alone, so all arms leave out the same questions. An
answer that no judge compared is ``not_judged``: because none is named, or because the pair
does not fit into the judge's context, which may happen to one arm alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation.answer_journal import Journal, run_rows
from selectit_dagster.evaluation.intervals import Score, summarise
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Scored, Task
from selectit_dagster.inference.batching import Batch, Row
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.generation import generate_batch
from selectit_dagster.inference.likelihood import continuation_batch, find_options, option_batch

Work = Callable[[Batch], list[Any]]
Run = Callable[..., list[Any]]


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


def run_task(
    task: Task,
    engine: Engine,
    journal: Journal,
    *,
    seed: int,
    report: Callable[[int, int], None],
) -> Result:
    """Ask, decode or score, and summarise one benchmark.

    ``seed`` is that of sampled decoding; ``report`` is called with questions done and in all.
    """
    questions = task.questions()
    asked, too_long = fit_prompts(task, questions, engine)
    if not asked:
        raise UserError(
            f"benchmark {task.benchmark.name}: no question fits into the model's context of "
            f"{engine.context} tokens",
            hint="use a model with a longer context, or fewer shots and max_new_tokens",
        )

    def run(rows: Sequence[Row], work: Work, new_tokens: int = 0) -> list[Any]:
        return run_rows(
            engine,
            rows,
            work,
            journal.keep,
            batch_tokens=task.benchmark.batch_tokens,
            new_tokens=new_tokens,
            report=lambda done: report(done * len(asked) // len(rows), len(asked)),
        )

    if task.chooses:
        outputs, facts = _choose(task, asked, engine, run)
    else:
        outputs, facts = _generate(task, asked, engine, run, seed)
    scored = task.score([a.question for a in asked], outputs, journal.keep)
    rows = [
        _row(a, s, "not_judged" if s.score is None else "ok")
        for a, s in zip(asked, scored, strict=True)
    ]
    unasked = Scored("", "", None)
    rows += [_row(Asked(q, Prompt("", ""), (), 0), unasked, "too_long") for q in too_long]
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
    asked: list[Asked] = []
    too_long: list[Question] = []
    for question in questions:
        for shots in range(task.shots, -1, -1):
            prompt = task.written(question, shots, engine)
            ids = engine.encode(prompt.text, special=not task.templated)
            if len(ids) <= limit:
                share = f"{prompt.share}\x00{shots}"
                asked.append(Asked(question, Prompt(prompt.text, share), tuple(ids), shots))
                break
        else:
            too_long.append(question)
    return asked, too_long


def _generate(
    task: Task, asked: Sequence[Asked], engine: Engine, run: Run, seed: int
) -> tuple[list[list[str]], dict[str, Any]]:
    """Return the texts of each question's samples, and counts of why they ended."""
    decoding = task.decoded()
    several = decoding.samples > 1
    rows = [
        # samples of one question share its whole prompt, which is more than questions share
        Row(
            f"{a.question.question_id}\x00{sample}",
            a.ids,
            a.question.question_id if several else a.prompt.share,
        )
        for a in asked
        for sample in range(decoding.samples)
    ]

    def work(batch: Batch) -> list[Any]:
        made = generate_batch(engine, rows, batch, decoding, seed=seed)
        return [[one.text, len(one.ids), one.finish] for one in made]

    texts, lengths, ends = zip(*run(rows, work, decoding.max_new_tokens), strict=True)
    counts = Counter(ends)
    facts = {
        "generated_tokens": sum(lengths),
        "ended_by": {name: counts[name] for name in ("eos", "stop", "length")},
        "decoding": {k: v for k, v in vars(decoding).items() if k != "stop"},
        "stop": list(decoding.stop),
    }
    starts = range(0, len(rows), decoding.samples)
    return [list(texts[start : start + decoding.samples]) for start in starts], facts


def _choose(
    task: Task, asked: Sequence[Asked], engine: Engine, run: Run
) -> tuple[list[list[str]], dict[str, Any]]:
    """Return each question's option probabilities as JSON, and how they were found."""
    labels = task.labels
    options = find_options(engine, asked[0].prompt.text, labels)
    if options.single:
        rows = [Row(a.question.question_id, a.ids + options.lead, a.prompt.share) for a in asked]
    else:
        rows = [_option_row(engine, a, label) for a in asked for label in labels]

    def work(batch: Batch) -> list[Any]:
        if options.single:
            return option_batch(engine, rows, batch, options.tokens).tolist()
        return [value for value, _ in continuation_batch(engine, rows, batch)]

    matrix = np.array(run(rows, work)).reshape(len(asked), len(labels))
    shares = np.exp(matrix - matrix.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    texts = [
        [json.dumps({o: round(float(p), 6) for o, p in zip(labels, row, strict=True)})]
        for row in shares
    ]
    way = "last position" if options.single else "likelihood of the whole option"
    return texts, {"options": way, "option_tokens": list(options.tokens)}


def _option_row(engine: Engine, asked: Asked, label: str) -> Row:
    """Return the row of one option that takes several tokens."""
    ids = tuple(engine.encode(f"{asked.prompt.text} {label}"))
    key = f"{asked.question.question_id}\x00{label}"
    return Row(key, ids, asked.prompt.share, max(1, len(ids) - len(asked.ids)))
