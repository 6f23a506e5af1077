"""Short answers to instructions, compared exactly.

One JSON Lines file of ``{"id", "family", "instruction", "input", "answer"}``; ``id``,
``family`` (the group) and ``input`` may be missing. The question is put in the template that
the model was tuned with and answered greedily.
"""

from __future__ import annotations

from pathlib import Path

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.evaluation import question_files
from selectit_dagster.evaluation.question_files import Record
from selectit_dagster.evaluation.tasks.prompt_forms import InstructionTask
from selectit_dagster.evaluation.tasks.task import Question, register


@register("exact-match")
class ExactMatchTask(InstructionTask):
    """Exact match of the whole answer, blanks around it ignored."""

    def files(self) -> list[Path]:
        """Return the file of questions, or all of a folder."""
        return question_files.local_files(self.folder, self.patterns, "questions")

    def question(self, record: Record) -> Question:
        """Return a question; without an ``id`` it is named by its content."""
        instruction = record.text("instruction")
        further = record.text("input") if record.get("input") else ""
        name = str(record.get("id") or sha256_json([instruction, further])[:16])
        text = f"{instruction}\n{further}" if further else instruction
        payload = {"instruction": instruction, "input": further}
        family = str(record.get("family") or "")
        return Question(name, family, text, record.text("answer"), payload)
