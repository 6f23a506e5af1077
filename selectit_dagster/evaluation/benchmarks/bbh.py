"""BIG-Bench Hard: 27 tasks with their published chain-of-thought prompts (Suzgun et al. 2022).

The prompt is the task's own three worked examples and the question; the model reasons and
ends with "the answer is ...". The score is the mean over tasks of exact match. The paper
protocol draws 40 questions per task, strict asks all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import rules, sources
from selectit_dagster.evaluation.benchmarks.base import Prompt, Question, Task
from selectit_dagster.evaluation.generation import Decoding

if TYPE_CHECKING:
    from selectit_dagster.evaluation.engine import Engine

_HEADER_LINES = 2


class BbhTask(Task):
    """Few-shot chain of thought, exact match, mean over tasks."""

    metric = "plain-exact-match"
    macro = True
    default_shots = 3
    per_group = 40
    hub = sources.HubData("lukaemon/bbh")
    _heads: dict[str, list[str]] | None = None

    def files(self) -> list[Path]:
        """Return ``bbh/*.json`` and ``cot-prompts/*.txt``."""
        return self._task_files() + self._prompt_files()

    def _task_files(self) -> list[Path]:
        return sources.local_files(self._root(), ("bbh/*.json", "*.json"), "BBH tasks")

    def _prompt_files(self) -> list[Path]:
        return sources.local_files(self._root(), ("cot-prompts/*.txt",), "BBH prompts")

    def _root(self) -> Path:
        if self.folder is None:
            raise UserError(
                f"benchmark {self.benchmark.name}: the worked examples of BBH are published with "
                "its repository, not on the hub",
                hint="give the path of a folder with bbh/*.json and cot-prompts/*.txt",
            )
        return self.folder

    def data_identity(self) -> dict[str, str]:
        """Return what the questions' content is known by."""
        return {"files": sources.files_digest(self.files())}

    def all_questions(self) -> list[Question]:
        """Return the questions of all tasks, named by their number in the task's file."""
        questions = []
        for path in self._task_files():
            for number, example in enumerate(sources.read_json(path)["examples"]):
                where = f"{path}, example {number}"
                text = sources.field(example, "input", where)
                target = sources.field(example, "target", where)
                questions.append(Question(f"{path.stem}/{number}", path.stem, text, target))
        return questions

    def worked_examples(self) -> dict[str, list[str]]:
        """Return each task's heading followed by its worked examples."""
        if self._heads is None:
            self._heads = {}
            for path in self._prompt_files():
                # the first two lines are a warning not to train on the file
                lines = sources.open_text(path).split("\n")[_HEADER_LINES:]
                head, *examples = "\n".join(lines).strip().split("\n\nQ: ")
                self._heads[path.stem] = [head, *examples]
        return self._heads

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the task's heading, ``shots`` worked examples and the question."""
        known = self.worked_examples().get(question.group)
        if known is None:
            raise UserError(f"BBH task {question.group} has no file in cot-prompts")
        text = "\n\nQ: ".join([*known[: shots + 1], question.text])
        return Prompt(f"{text}\nA:", question.group)

    def decoding(self) -> Decoding:
        """Return greedy decoding up to a blank line."""
        return Decoding(self.benchmark.max_new_tokens or 512, ("\n\n",))

    def metric_name(self) -> str:
        """Return the protocol's metric."""
        return self.metric if self.protocol == "paper" else "option-match"

    def answer(self, output: str, question: Question) -> str:
        """Return the stated answer."""
        return rules.bbh_answer(output, self.protocol)
