"""MMLU: multiple choice over 57 subjects (Hendrycks et al. 2021).

Five shots from the subject's development questions, then the test question; the answer is
the most likely of the letters A to D right after "Answer:". One position decides, or, with a
tokenizer that writes a letter in several pieces, the likelihood of the whole option. The
score is the mean over all questions.

The paper protocol keeps the prompt of the scripts behind the paper, with its doubled blank
before the subject, and leaves out whole shots until the prompt fits into 2,048 tokens; strict
writes one blank and uses the model's context.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.display import one_line
from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction, question_files
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Task, register

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine

_PAPER_LONGEST = 2048


@register("mmlu")
class MmluTask(Task):
    """Five-shot multiple choice."""

    metric = "accuracy"
    labels = ("A", "B", "C", "D")
    default_shots = 5
    may_chat = True
    hub = question_files.HubData("cais/mmlu", "all")
    _shots: dict[str, list[Question]] | None = None

    def files(self) -> list[Path]:
        """Return the test and development files, ``test/*_test.csv`` and ``dev/*_dev.csv``."""
        return self._part("test") + self._part("dev")

    def _part(self, split: str) -> list[Path]:
        folder = self.folder or Path()
        return question_files.local_files(
            folder, (f"{split}/*_{split}.csv",), f"MMLU {split} questions"
        )

    def all_questions(self) -> list[Question]:
        """Return the test questions, subject by subject."""
        return self._questions_of("test")

    def shot_questions(self) -> dict[str, list[Question]]:
        """Return the development questions of each subject."""
        if self._shots is None:
            self._shots = {}
            for question in self._questions_of("dev"):
                self._shots.setdefault(question.group, []).append(question)
        return self._shots

    def most_shots(self) -> int:
        """Return the smallest number of development questions of a subject."""
        subjects = {question.group for question in self.questions()}
        return min(len(self.shot_questions().get(subject, ())) for subject in subjects)

    def _questions_of(self, split: str) -> list[Question]:
        if self.folder is None:
            rows = [
                (r["subject"], [r["question"], *r["choices"], self.labels[int(r["answer"])]])
                for r in self.hub_records(split)
            ]
        else:
            rows = [
                (path.name.removesuffix(f"_{split}.csv"), row)
                for path in self._part(split)
                for row in question_files.read_csv(path)
            ]
        numbers: dict[str, int] = {}
        questions = []
        for subject, row in rows:
            numbers[subject] = number = numbers.get(subject, -1) + 1
            questions.append(self._question(split, subject, number, row))
        return questions

    def _question(self, split: str, subject: str, number: int, row: list[str]) -> Question:
        if len(row) != len(self.labels) + 2 or row[-1] not in self.labels:
            whole = len(row) == len(self.labels) + 2
            raise UserError(
                f"MMLU {subject}, {split}, row {number + 1}: expected question, four options and "
                f"one of {', '.join(self.labels)}; found "
                + (f"the answer {one_line(row[-1], 40)!r}" if whole else f"{len(row)} fields"),
                hint="give the benchmark's files as they are published",
            )
        options = zip(self.labels, row[1:-1], strict=True)
        lines = [row[0], *(f"{label}. {option}" for label, option in options)]
        return Question(f"{subject}/{number}", subject, "\n".join(lines), row[-1])

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the subject's heading, ``shots`` answered questions and the question."""
        subject = question.group.replace("_", " ")
        blank = "  " if self.protocol == "paper" else " "
        head = f"The following are multiple choice questions (with answers) about{blank}{subject}."
        known = self.shot_questions().get(question.group, [])[:shots]
        parts = [head, *(f"{q.text}\nAnswer: {q.reference}" for q in known)]
        return Prompt("\n\n".join([*parts, f"{question.text}\nAnswer:"]), question.group)

    def longest_prompt(self, engine: Engine) -> int:
        """Return the longest prompt in tokens."""
        longest = super().longest_prompt(engine)
        return min(longest, _PAPER_LONGEST) if self.protocol == "paper" else longest

    def message(self, question: Question, shots: int, engine: Engine) -> str:
        """Return the prompt and what the answer is to look like."""
        text = self.prompt(question, shots, engine).text.removesuffix("Answer:").rstrip()
        return f"{text}\n\nAnswer with the letter of the right option."

    def gold(self, question: Question) -> str:
        """Return all probability on the right letter, or a chat model's sentence."""
        if self.chats:
            return f"The answer is ({question.reference})."
        return json.dumps({label: float(label == question.reference) for label in self.labels})

    def answer(self, output: str, question: Question) -> str:
        """Return the most likely letter of ``{"A": probability, ...}``, or the one replied."""
        if self.chats:
            stated = answer_extraction.bbh_answer(output, "strict")
            letters = map(answer_extraction.option_letter, (stated, output))
            return next((letter for letter in letters if letter in self.labels), "")
        shares: dict[str, float] = json.loads(output)
        return max(shares, key=lambda label: (shares[label], -self.labels.index(label)))
