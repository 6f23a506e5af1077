"""BIG-Bench Hard: 27 tasks with their published chain-of-thought prompts (Suzgun et al. 2022).

The prompt is the task's own three worked examples and the question; the model reasons and
ends with "the answer is ...". The score is the mean over tasks of exact match. The paper
protocol draws 40 questions per task, strict asks all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction, question_files
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Task, register
from selectit_dagster.inference.generation import Decoding

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine

_RULE = re.compile(r"\A[^\n]*\n-{3,}\n")


@register("bbh")
class BbhTask(Task):
    """Few-shot chain of thought, exact match, mean over tasks."""

    metric = "plain-exact-match"
    macro = True
    default_shots = 3
    per_group = 40
    reads_strictly = True
    may_chat = True
    hub = question_files.HubData("lukaemon/bbh")
    hub_prompts = question_files.HubData("Joschka/big_bench_hard", "few_shot_prompts")
    _heads: dict[str, list[str]] | None = None

    def files(self) -> list[Path]:
        """Return ``bbh/*.json`` and ``cot-prompts/*.txt``."""
        return self._task_files() + self._prompt_files()

    def _task_files(self) -> list[Path]:
        return question_files.local_files(self._root(), ("bbh/*.json", "*.json"), "BBH tasks")

    def _prompt_files(self) -> list[Path]:
        return question_files.local_files(self._root() / "cot-prompts", ("*.txt",), "BBH prompts")

    def _root(self) -> Path:
        return self.folder or Path()

    def data_identity(self) -> dict[str, str]:
        """Return what questions and prompts are known by."""
        if self.folder is not None:
            return super().data_identity()
        return {**super().data_identity(), "prompts": question_files.hub_commit(self.hub_prompts)}

    def all_questions(self) -> list[Question]:
        """Return the questions of all tasks, named by their place in the task's data."""
        questions = []
        for task, number, example in self._examples():
            if task not in self.worked_examples():
                raise UserError(
                    f"BBH task {task} has no worked examples: {self._root()}/cot-prompts lacks "
                    f"{task}.txt",
                    hint="add the published file, or take the task's questions away",
                )
            where = f"BBH {task}, example {number}"
            text = question_files.field(example, "input", where)
            target = question_files.field(example, "target", where)
            questions.append(Question(f"{task}/{number}", task, text, target))
        return questions

    def _examples(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        if self.folder is None:
            for task in self.worked_examples():
                data = question_files.HubData(self.hub_data.name, task)
                records = question_files.hub_records(data, "test", self.commit)
                yield from ((task, number, record) for number, record in enumerate(records))
            return
        for path in self._task_files():
            examples = question_files.objects(question_files.read_json(path), str(path), "examples")
            for number, record in enumerate(examples):
                yield path.stem, number, record

    def worked_examples(self) -> dict[str, list[str]]:
        """Return each task's heading followed by its worked examples."""
        if self._heads is None:
            self._heads = {
                task: _body(text).split("\n\nQ: ") for task, text in sorted(self._prompts().items())
            }
        return self._heads

    def most_shots(self) -> int:
        """Return the smallest number of worked examples of a task."""
        return min(len(parts) - 1 for parts in self.worked_examples().values())

    def _prompts(self) -> dict[str, str]:
        if self.folder is not None:
            return {path.stem: question_files.open_text(path) for path in self._prompt_files()}
        data = self.hub_prompts
        records = question_files.hub_records(
            data, str(data.config), question_files.hub_commit(data)
        )
        return {record["dataset_name"]: record["chain_of_thought_prompt"] for record in records}

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the task's heading, ``shots`` worked examples and the question."""
        known = self.worked_examples()[question.group]
        text = "\n\nQ: ".join([*known[: shots + 1], question.text])
        return Prompt(f"{text}\nA:", question.group)

    def message(self, question: Question, shots: int, engine: Engine) -> str:
        """Return the prompt and what the answer is to end with."""
        text = self.prompt(question, shots, engine).text.removesuffix("A:").rstrip()
        return f'{text}\n\nThink step by step and end with "So the answer is" and the answer.'

    def decoding(self) -> Decoding:
        """Return greedy decoding up to a blank line."""
        return Decoding(self.benchmark.max_new_tokens or 512, ("\n\n",))

    def metric_name(self) -> str:
        """Return the protocol's metric."""
        return self.metric if self.protocol == "paper" else "option-match"

    def gold(self, question: Question) -> str:
        """Return the answer as the worked examples end."""
        return f"Let's think step by step. So the answer is {question.reference}."

    def answer(self, output: str, question: Question) -> str:
        """Return the stated answer."""
        return answer_extraction.bbh_answer(output, self.protocol)


def _body(text: str) -> str:
    """Return a published prompt without the warning not to train on it, which comes first."""
    return _RULE.sub("", text).strip()
