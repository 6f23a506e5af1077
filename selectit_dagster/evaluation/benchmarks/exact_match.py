"""Short answers to instructions, compared exactly.

One JSON Lines file of ``{"id", "family", "instruction", "input", "answer"}``; ``id``,
``family`` (the group) and ``input`` may be missing. The question is put in the template that
the model was tuned with and answered greedily.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.evaluation import sources
from selectit_dagster.evaluation.benchmarks.base import Prompt, Question, Task
from selectit_dagster.files import sha256_json
from selectit_dagster.tuning.templates import render_prompt

if TYPE_CHECKING:
    from selectit_dagster.evaluation.engine import Engine


class ExactMatchTask(Task):
    """Exact match of the whole answer, blanks around it ignored."""

    metric = "exact-match"
    instructs = True

    def files(self) -> list[Path]:
        """Return the file of questions."""
        return sources.local_files(self.folder or Path(), ("*.jsonl", "*.jsonl.gz"), "questions")

    def all_questions(self) -> list[Question]:
        """Return the file's questions; without an ``id`` a question is named by its content."""
        if self.folder is None:
            return [
                self._question(r, f"record {i}") for i, r in enumerate(self.hub_records("test"))
            ]
        return [
            self._question(record, f"{path}, question {number}")
            for path in self.files()
            for number, record in enumerate(sources.read_jsonl(path), start=1)
        ]

    def _question(self, record: dict[str, Any], where: str) -> Question:
        instruction = sources.field(record, "instruction", where)
        further = sources.field(record, "input", where) if record.get("input") else ""
        answer = sources.field(record, "answer", where)
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
