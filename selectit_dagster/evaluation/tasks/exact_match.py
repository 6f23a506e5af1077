"""Short answers to instructions, compared exactly.

One JSON Lines file of ``{"id", "family", "instruction", "input", "answer"}``; ``id``,
``family`` (the group) and ``input`` may be missing. The question is put in the template that
the model was tuned with and answered greedily.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.evaluation import question_files
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Task, register
from selectit_dagster.inference.prompt_templates import render_prompt

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine


@register("exact-match")
class ExactMatchTask(Task):
    """Exact match of the whole answer, blanks around it ignored."""

    metric = "exact-match"
    instructs = True

    def files(self) -> list[Path]:
        """Return the file of questions."""
        return question_files.local_files(
            self.folder or Path(), ("*.jsonl", "*.jsonl.gz"), "questions"
        )

    def all_questions(self) -> list[Question]:
        """Return the file's questions; without an ``id`` a question is named by its content."""
        if self.folder is None:
            return [
                self._question(r, f"record {i}") for i, r in enumerate(self.hub_records("test"))
            ]
        return [
            self._question(record, f"{path}, question {number}")
            for path in self.files()
            for number, record in enumerate(question_files.read_jsonl(path), start=1)
        ]

    def _question(self, record: dict[str, Any], where: str) -> Question:
        instruction = question_files.field(record, "instruction", where)
        further = question_files.field(record, "input", where) if record.get("input") else ""
        answer = question_files.field(record, "answer", where)
        name = str(record.get("id") or sha256_json([instruction, further])[:16])
        text = f"{instruction}\n{further}" if further else instruction
        payload = {"instruction": instruction, "input": further}
        return Question(name, str(record.get("family") or ""), text, answer, payload)

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the tuning template filled with the question."""
        text = render_prompt(
            self.template.name,
            question.payload["instruction"],
            question.payload["input"],
            tokenizer=engine.tokenizer,
            custom=self.template.custom,
        )
        return Prompt(text, "with input" if question.payload["input"] else "without input")
