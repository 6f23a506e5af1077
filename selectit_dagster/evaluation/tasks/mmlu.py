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
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.display import one_line
from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction, question_files
from selectit_dagster.evaluation.question_files import Record
from selectit_dagster.evaluation.tasks.prompt_forms import FewShotTask
from selectit_dagster.evaluation.tasks.task import Question, register

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine

_PAPER_LONGEST = 2048
_LETTERS = ("A", "B", "C", "D")


@register("mmlu")
class MmluTask(FewShotTask):
    """Five-shot multiple choice."""

    metric = "accuracy"
    labels = _LETTERS
    default_shots = 5
    may_chat = True
    hub = question_files.HubData("cais/mmlu", "all")
    chat_request = "Answer with the letter of the right option."

    def files(self) -> list[Path]:
        """Return the test and development files, ``test/*_test.csv`` and ``dev/*_dev.csv``."""
        return self._part("test") + self._part("dev")

    def _part(self, split: str) -> list[Path]:
        pattern = (f"{split}/*_{split}.csv",)
        return question_files.local_files(self.folder, pattern, f"MMLU {split} questions")

    def records(self, split: str) -> list[Record]:
        """Return the questions as fields of text, each with its subject and place in it."""
        if self.folder is None:
            rows = [
                (r["subject"], [r["question"], *r["choices"], _LETTERS[int(r["answer"])]])
                for r in self.hub_records(split)
            ]
        else:
            rows = [
                (path.name.removesuffix(f"_{split}.csv"), row)
                for path in self._part(split)
                for row in question_files.read_csv(path)
            ]
        counts: dict[str, int] = defaultdict(int)
        records = []
        for subject, fields in rows:
            number = counts[subject]
            where = f"MMLU {subject}, {split}, row {number + 1}"
            records.append(Record({"subject": subject, "fields": fields}, where, number))
            counts[subject] += 1
        return records

    def question(self, record: Record) -> Question:
        """Return the question with its options, one a line."""
        fields, subject = record["fields"], record["subject"]
        whole = len(fields) == len(_LETTERS) + 2
        if not whole or fields[-1] not in _LETTERS:
            raise UserError(
                f"{record.where}: expected question, four options and one of "
                f"{', '.join(_LETTERS)}; found "
                + (
                    f"the answer {one_line(fields[-1], 40)!r}" if whole else f"{len(fields)} fields"
                ),
                hint="give the benchmark's files as they are published",
            )
        options = zip(_LETTERS, fields[1:-1], strict=True)
        lines = [fields[0], *(f"{label}. {option}" for label, option in options)]
        return Question(f"{subject}/{record.number}", subject, "\n".join(lines), fields[-1])

    def find_examples(self) -> dict[str, list[Question]]:
        """Return the development questions of each subject."""
        found: dict[str, list[Question]] = defaultdict(list)
        for record in self.records("dev"):
            found[record["subject"]].append(self.question(record))
        return found

    def head(self, question: Question, shots: int) -> str:
        """Return the subject's heading."""
        subject = question.group.replace("_", " ")
        blank = "  " if self.protocol == "paper" else " "
        return f"The following are multiple choice questions (with answers) about{blank}{subject}."

    def longest_prompt(self, engine: Engine) -> int:
        """Return the longest prompt in tokens."""
        longest = super().longest_prompt(engine)
        return min(longest, _PAPER_LONGEST) if self.protocol == "paper" else longest

    def gold(self, question: Question) -> str:
        """Return all probability on the right letter, or a chat model's sentence."""
        if self.chats:
            return f"The answer is ({question.reference})."
        return json.dumps({label: float(label == question.reference) for label in _LETTERS})

    def answer(self, output: str, question: Question) -> str:
        """Return the most likely letter of ``{"A": probability, ...}``, or the one replied."""
        if self.chats:
            stated = answer_extraction.bbh_answer(output, "strict")
            letters = map(answer_extraction.option_letter, (stated, output))
            return next((letter for letter in letters if letter in _LETTERS), "")
        shares: dict[str, float] = json.loads(output)
        return max(shares, key=lambda label: (shares[label], -_LETTERS.index(label)))
