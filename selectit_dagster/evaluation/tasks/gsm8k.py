"""GSM8K: school mathematics in words (Cobbe et al. 2021).

Eight fixed worked examples, then the question; the answer is the last number of the output
(paper) or the number that the output states (strict). The paper protocol asks 200 questions
drawn by the seed, strict asks all 1,319.

Published results were made with the eight worked examples of Wei et al. (2022), appendix G,
which are not this project's to give away. ``shots_path: lm-eval`` reads them from an installed
lm-evaluation-harness, and ``shots_path: FILE``, or a file ``shots.jsonl`` in the benchmark's
folder, gives any others as JSON Lines of ``{"question", "answer"}``. Otherwise the eight are
the project's own (``gsm8k_shots.jsonl``). Whose they were is recorded with the result.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction, question_files
from selectit_dagster.evaluation.question_files import Record
from selectit_dagster.evaluation.tasks.prompt_forms import FewShotTask
from selectit_dagster.evaluation.tasks.task import Question, register

_HARNESS = "lm-eval"
OWN_SHOTS = Path(__file__).with_name("gsm8k_shots.jsonl")


@register("gsm8k")
class Gsm8kTask(FewShotTask):
    """Eight-shot chain of thought, exact match."""

    metric = "plain-exact-match"
    strict_metric = "number-match"
    default_shots = 8
    per_group = 200
    reads_strictly = True
    may_chat = True
    patterns = ("test.jsonl", "test.jsonl.gz")
    hub = question_files.HubData("openai/gsm8k", "main")
    lead = "Question: "
    max_new_tokens, stop = 512, ("\n",)
    chat_request = 'Reason step by step and end with "The answer is" and the number.'

    @property
    def shots_from(self) -> str:
        """Whose worked examples are used: a file's, ``lm-eval``'s, or "" for the project's own."""
        if self.benchmark.shots_path is not None:
            return self.benchmark.shots_path
        path = self.folder / "shots.jsonl" if self.folder is not None else None
        return str(path) if path is not None and path.is_file() else ""

    def data_identity(self) -> dict[str, str]:
        """Return what questions and worked examples are known by."""
        shown = [f"Question: {one.text}\nAnswer: {one.reference}" for one in self.examples[""]]
        return {**super().data_identity(), "shots": sha256_json(shown)}

    def question(self, record: Record) -> Question:
        """Return a test question, named by its place in the published file."""
        reference = answer_extraction.gsm8k_reference(record.text("answer"))
        return Question(f"test/{record.number}", "", record.text("question").strip(), reference)

    def find_examples(self) -> dict[str, list[Question]]:
        """Return the worked examples, the same for all questions."""
        if self.shots_from == _HARNESS:
            pairs = harness_shots()
        else:
            given = question_files.read_jsonl(Path(self.shots_from or OWN_SHOTS).expanduser())
            pairs = [(shot.text("question"), shot.text("answer")) for shot in given]
        return {"": [Question("", "", question, answer) for question, answer in pairs]}

    def head(self, question: Question, shots: int) -> str:
        """Return the heading."""
        return f"Answer the following question{'s' if shots else ''}."

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
