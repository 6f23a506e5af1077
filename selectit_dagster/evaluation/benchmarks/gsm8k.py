"""GSM8K: school mathematics in words (Cobbe et al. 2021).

Eight fixed worked examples, then the question; the answer is the last number of the output
(paper) or the number that the output states (strict). The paper protocol asks 200 questions
drawn by the seed, strict asks all 1,319.

The worked examples are this project's own, in ``gsm8k_shots.py``. To use others, put a
file ``shots.jsonl`` of ``{"question", "answer"}`` into the benchmark's folder: the numbers of
published results were made with the eight of Wei et al. (2022), appendix G.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.evaluation import rules, sources
from selectit_dagster.evaluation.benchmarks.base import Prompt, Question, Task
from selectit_dagster.evaluation.benchmarks.gsm8k_shots import SHOTS
from selectit_dagster.evaluation.generation import Decoding
from selectit_dagster.files import sha256_json

if TYPE_CHECKING:
    from selectit_dagster.evaluation.engine import Engine


class Gsm8kTask(Task):
    """Eight-shot chain of thought, exact match."""

    metric = "plain-exact-match"
    default_shots = 8
    per_group = 200
    hub = sources.HubData("openai/gsm8k", "main")
    _shots: list[str] | None = None

    def files(self) -> list[Path]:
        """Return ``test.jsonl``, and the file of worked examples where the folder has one."""
        return [self._test(), *self._given_shots()]

    def _test(self) -> Path:
        patterns = ("test.jsonl", "test.jsonl.gz")
        return sources.local_files(self.folder or Path(), patterns, "GSM8K questions")[0]

    def _given_shots(self) -> list[Path]:
        path = (self.folder or Path()) / "shots.jsonl"
        return [path] if self.folder is not None and path.is_file() else []

    def data_identity(self) -> dict[str, str]:
        """Return what questions and worked examples are known by."""
        return {**super().data_identity(), "shots": sha256_json(self.worked_examples())}

    def all_questions(self) -> list[Question]:
        """Return the test questions, named by their place in the published file."""
        local = self.folder is not None
        records = sources.read_jsonl(self._test()) if local else self.hub_records("test")
        questions = []
        for number, record in enumerate(records):
            where = f"GSM8K test question {number}"
            text = sources.field(record, "question", where).strip()
            reference = rules.gsm8k_reference(sources.field(record, "answer", where))
            questions.append(Question(f"test/{number}", "", text, reference))
        return questions

    def worked_examples(self) -> list[str]:
        """Return the worked examples as they stand in the prompt."""
        if self._shots is None:
            pairs = list(SHOTS)
            for path in self._given_shots():
                given = enumerate(sources.read_jsonl(path), start=1)
                pairs = [_pair(shot, f"{path}, line {number}") for number, shot in given]
            self._shots = [f"Question: {question}\nAnswer: {answer}" for question, answer in pairs]
        return self._shots

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the heading, ``shots`` worked examples and the question."""
        head = f"Answer the following question{'s' if shots else ''}."
        parts = [head, *self.worked_examples()[:shots]]
        return Prompt("\n\n".join([*parts, f"Question: {question.text}\nAnswer:"]), "")

    def decoding(self) -> Decoding:
        """Return greedy decoding up to the end of the line."""
        return Decoding(self.benchmark.max_new_tokens or 512, ("\n",))

    def metric_name(self) -> str:
        """Return the protocol's metric."""
        return self.metric if self.protocol == "paper" else "number-match"

    def answer(self, output: str, question: Question) -> str:
        """Return the number that the output gives."""
        return rules.gsm8k_answer(output, self.protocol)

    def facts(self) -> dict[str, str]:
        """Record whose worked examples were used."""
        return {"worked_examples": "given" if self._given_shots() else "the project's own"}


def _pair(shot: dict[str, Any], where: str) -> tuple[str, str]:
    return sources.field(shot, "question", where), sources.field(shot, "answer", where)
