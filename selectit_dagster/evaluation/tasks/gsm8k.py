"""GSM8K: school mathematics in words (Cobbe et al. 2021).

Eight fixed worked examples, then the question; the answer is the last number of the output
(paper) or the number that the output states (strict). The paper protocol asks 200 questions
drawn by the seed, strict asks all 1,319.

Published results were made with the eight worked examples of Wei et al. (2022), appendix G,
which are not this project's to give away. ``shots_path: lm-eval`` reads them from an installed
lm-evaluation-harness, and ``shots_path: FILE``, or a file ``shots.jsonl`` in the benchmark's
folder, gives any others as JSON Lines of ``{"question", "answer"}``. Otherwise the eight are
the project's own (``gsm8k_shots.py``). Whose they were is recorded with the result.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction, question_files
from selectit_dagster.evaluation.tasks.gsm8k_shots import SHOTS
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Task, register
from selectit_dagster.inference.generation import Decoding

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine


_HARNESS = "lm-eval"


@register("gsm8k")
class Gsm8kTask(Task):
    """Eight-shot chain of thought, exact match."""

    metric = "plain-exact-match"
    default_shots = 8
    per_group = 200
    reads_strictly = True
    may_chat = True
    hub = question_files.HubData("openai/gsm8k", "main")
    _shots: list[str] | None = None

    def files(self) -> list[Path]:
        """Return ``test.jsonl``, and the file of worked examples where the folder has one."""
        return [self._test()]

    def _test(self) -> Path:
        patterns = ("test.jsonl", "test.jsonl.gz")
        return question_files.local_files(self.folder or Path(), patterns, "GSM8K questions")[0]

    @property
    def shots_from(self) -> str:
        """Whose worked examples are used: a file's, ``lm-eval``'s, or "" for the project's own."""
        if self.benchmark.shots_path is not None:
            return self.benchmark.shots_path
        path = (self.folder or Path()) / "shots.jsonl"
        return str(path) if self.folder is not None and path.is_file() else ""

    def data_identity(self) -> dict[str, str]:
        """Return what questions and worked examples are known by."""
        return {**super().data_identity(), "shots": sha256_json(self.worked_examples())}

    def all_questions(self) -> list[Question]:
        """Return the test questions, named by their place in the published file."""
        local = self.folder is not None
        records = question_files.read_jsonl(self._test()) if local else self.hub_records("test")
        questions = []
        for number, record in enumerate(records):
            where = f"GSM8K test question {number}"
            text = question_files.field(record, "question", where).strip()
            reference = answer_extraction.gsm8k_reference(
                question_files.field(record, "answer", where)
            )
            questions.append(Question(f"test/{number}", "", text, reference))
        return questions

    def worked_examples(self) -> list[str]:
        """Return the worked examples as they stand in the prompt."""
        if self._shots is None:
            if self.shots_from == _HARNESS:
                pairs = harness_shots()
            elif self.shots_from:
                path = Path(self.shots_from).expanduser()
                given = enumerate(question_files.read_jsonl(path), start=1)
                pairs = [_pair(shot, f"{path}, line {number}") for number, shot in given]
            else:
                pairs = list(SHOTS)
            self._shots = [f"Question: {question}\nAnswer: {answer}" for question, answer in pairs]
        return self._shots

    def most_shots(self) -> int:
        """Return the number of worked examples."""
        return len(self.worked_examples())

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the heading, ``shots`` worked examples and the question."""
        head = f"Answer the following question{'s' if shots else ''}."
        parts = [head, *self.worked_examples()[:shots]]
        return Prompt("\n\n".join([*parts, f"Question: {question.text}\nAnswer:"]), "")

    def message(self, question: Question, shots: int, engine: Engine) -> str:
        """Return the prompt and what the answer is to end with."""
        text = self.prompt(question, shots, engine).text.removesuffix("Answer:").rstrip()
        return f'{text}\n\nReason step by step and end with "The answer is" and the number.'

    def decoding(self) -> Decoding:
        """Return greedy decoding up to the end of the line."""
        return Decoding(self.benchmark.max_new_tokens or 512, ("\n",))

    def metric_name(self) -> str:
        """Return the protocol's metric."""
        return self.metric if self.protocol == "paper" else "number-match"

    def gold(self, question: Question) -> str:
        """Return the number as the worked examples end."""
        return f"2 + 3 = 5. The answer is {question.reference}."

    def answer(self, output: str, question: Question) -> str:
        """Return the number that the output gives."""
        return answer_extraction.gsm8k_answer(output, self.protocol)

    def facts(self) -> dict[str, str]:
        """Record whose worked examples were used."""
        if self.shots_from == _HARNESS:
            return {"worked_examples": "Wei et al. (2022), from lm-eval"}
        return {"worked_examples": "given" if self.shots_from else "the project's own"}


def harness_shots() -> list[tuple[str, str]]:
    """Return the published eight from an installed lm-evaluation-harness; it is not run.

    Raises
    ------
    UserError
        When the harness is not installed, or does not hold them where it used to.
    """
    import yaml

    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "shots_path: lm-eval needs lm-evaluation-harness, which is not installed",
            hint="install the extra: pip install 'selectit-dagster[lm-eval]', or name a file",
        )
    path = Path(found.submodule_search_locations[0]) / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    try:
        samples = yaml.safe_load(path.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
        return [(sample["question"], sample["target"]) for sample in samples]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold the worked examples as expected: {error}",
            hint="give them as a file instead: shots_path: shots.jsonl",
        ) from error


def _pair(shot: dict[str, Any], where: str) -> tuple[str, str]:
    return question_files.field(shot, "question", where), question_files.field(
        shot, "answer", where
    )
