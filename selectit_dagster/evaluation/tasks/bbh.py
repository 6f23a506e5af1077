"""BIG-Bench Hard: 27 tasks with their published chain-of-thought prompts (Suzgun et al. 2022).

The prompt is the task's own three worked examples and the question; the model reasons and
ends with "the answer is ...". The score is the mean over tasks of exact match. The paper
protocol draws 40 questions per task, strict asks all.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction, question_files
from selectit_dagster.evaluation.question_files import HubData, Record
from selectit_dagster.evaluation.tasks.prompt_forms import FewShotTask
from selectit_dagster.evaluation.tasks.task import Question, register

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine

_HUB_PROMPTS = HubData("Joschka/big_bench_hard", "few_shot_prompts")
# the warning not to train on a published prompt, which stands before it
_WARNING = re.compile(r"\A[^\n]*\n-{3,}\n")


@register("bbh")
class BbhTask(FewShotTask):
    """Few-shot chain of thought, exact match, mean over tasks."""

    metric = "plain-exact-match"
    strict_metric = "option-match"
    macro = True
    default_shots = 3
    per_group = 40
    reads_strictly = True
    may_chat = True
    hub = HubData("lukaemon/bbh")
    lead, cue = "Q: ", "A:"
    max_new_tokens, stop = 512, ("\n\n",)
    chat_request = 'Think step by step and end with "So the answer is" and the answer.'

    def files(self) -> list[Path]:
        """Return ``bbh/*.json`` and ``cot-prompts/*.txt``."""
        return self._task_files() + self._prompt_files()

    def _task_files(self) -> list[Path]:
        return question_files.local_files(self.folder, ("bbh/*.json", "*.json"), "BBH tasks")

    def _prompt_files(self) -> list[Path]:
        folder = (self.folder or Path()) / "cot-prompts"
        return question_files.local_files(folder, ("*.txt",), "BBH prompts")

    def data_identity(self) -> dict[str, str]:
        """Return what questions and prompts are known by."""
        if self.folder is not None:
            return super().data_identity()
        return {**super().data_identity(), "prompts": question_files.data_commit(_HUB_PROMPTS)}

    def records(self, split: str) -> list[Record]:
        """Return the examples of all tasks, each with its task."""
        if self.folder is None:
            parts = {
                task: question_files.hub_records(
                    HubData(self.hub_data.name, task), split, self.commit
                )
                for task in self._prompts
            }
        else:
            parts = {
                path.stem: question_files.read_json_records(path, "examples")
                for path in self._task_files()
            }
        return [
            Record({**record, "task": task}, f"BBH {task}, example {number}", number)
            for task, records in parts.items()
            for number, record in enumerate(records)
        ]

    def question(self, record: Record) -> Question:
        """Return a question, named by its place in its task."""
        task = record["task"]
        if task not in self._prompts:
            raise UserError(
                f"BBH task {task} has no worked examples: {self.folder}/cot-prompts lacks "
                f"{task}.txt",
                hint="add the published file, or take the task's questions away",
            )
        name = f"{task}/{record.number}"
        return Question(name, task, record.text("input"), record.text("target"))

    @cached_property
    def _prompts(self) -> dict[str, list[str]]:
        """Each task's heading, followed by its worked examples without their "Q: "."""
        if self.folder is not None:
            texts = {path.stem: question_files.open_text(path) for path in self._prompt_files()}
        else:
            split, commit = str(_HUB_PROMPTS.config), question_files.data_commit(_HUB_PROMPTS)
            found = question_files.hub_records(_HUB_PROMPTS, split, commit)
            texts = {one["dataset_name"]: one["chain_of_thought_prompt"] for one in found}
        return {
            task: _WARNING.sub("", text).strip().split(f"\n\n{self.lead}")
            for task, text in sorted(texts.items())
        }

    def find_examples(self) -> dict[str, list[Question]]:
        """Return each task's worked examples, question and answer as one text."""
        return {
            task: [Question("", task, text, "") for text in texts]
            for task, (_, *texts) in self._prompts.items()
        }

    def shown(self, example: Question, engine: Engine) -> str:
        """Return a worked example as it is published."""
        return f"{self.lead}{example.text}"

    def head(self, question: Question, shots: int) -> str:
        """Return the task's heading."""
        return self._prompts[question.group][0]

    def gold(self, question: Question) -> str:
        """Return the answer as the worked examples end."""
        return f"Let's think step by step. So the answer is {question.reference}."

    def answer(self, output: str, question: Question) -> str:
        """Return the stated answer."""
        return answer_extraction.bbh_answer(output, self.protocol)
