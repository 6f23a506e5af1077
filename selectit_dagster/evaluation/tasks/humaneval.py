"""HumanEval: Python functions from their docstrings (Chen et al. 2021), the paper's CodeX.

Paper protocol: 20 samples at temperature 0.8 and top-p 0.95, pass@10 by the unbiased
estimate. Strict: the greedy completion, pass@1. A completion ends where a new statement
begins at the left margin. Programs run in the sandbox, and nowhere else unless the user
accepts that.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selectit_dagster.evaluation import question_files, sandbox
from selectit_dagster.evaluation.answer_journal import Keep, kept_nowhere
from selectit_dagster.evaluation.question_files import Record
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Scored, Task, register
from selectit_dagster.inference.generation import Decoding

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_FENCE = re.compile(r"```[ \t]*[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_AT_A_TIME = 100
_FIELDS = ("prompt", "canonical_solution", "test", "entry_point")


@register("humaneval")
class HumanEvalTask(Task):
    """Sampled completions, run against their tests."""

    metric = "pass-at-k"
    may_chat = True
    patterns = ("HumanEval.jsonl.gz", "HumanEval.jsonl", "*.jsonl.gz", "*.jsonl")
    hub = question_files.HubData("openai/openai_humaneval")
    _layers: sandbox.Verdict | None = None
    _ended: Counter[str] | None = None

    @property
    def k(self) -> int:
        """The k of pass@k."""
        return 10 if self.protocol == "paper" else 1

    def question(self, record: Record) -> Question:
        """Return a problem; the text to keep out of training data includes the solution."""
        parts = {name: record.text(name) for name in _FIELDS}
        text = parts["prompt"] + parts["canonical_solution"]
        return Question(record.text("task_id"), "", text, str(self.k), parts)

    def check(self) -> None:
        """Refuse to start where programs would not be confined."""
        self._layers = sandbox.require_sandbox(anyway=self.benchmark.allow_unsandboxed_code)

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the function's head and docstring."""
        return Prompt(question.payload["prompt"], question.question_id)

    def message(self, question: Question, shots: int, engine: Engine) -> str:
        """Ask for the whole function in a fence."""
        return (
            "Complete this Python function. Answer with the whole function, its imports and "
            f"helpers in one code block.\n\n```python\n{question.payload['prompt']}```"
        )

    def gold(self, question: Question) -> str:
        """Return the published solution, as a chat model writes the whole function."""
        solution = str(question.payload["canonical_solution"])
        if self.chats:
            whole = question.payload["prompt"] + solution
            return f"Here it is:\n\n```python\n{whole}```\nIt follows the docstring."
        return solution

    def decoding(self) -> Decoding:
        """Return the protocol's decoding."""
        longest = self.benchmark.max_new_tokens or 512
        if self.protocol == "strict":
            return Decoding(longest, STOP)
        return Decoding(longest, STOP, temperature=0.8, top_p=0.95, samples=20)

    def score(
        self,
        questions: Sequence[Question],
        outputs: Sequence[Sequence[str]],
        keep: Keep = kept_nowhere,
    ) -> list[Scored]:
        """Run every completion; the output is the JSON list of completions."""
        from selectit_dagster.evaluation.metrics import score_all

        programs = [
            (
                f"program {question.question_id} {sample}",
                program(question, self.reply(text), chats=self.chats),
            )
            for question, texts in zip(questions, outputs, strict=True)
            for sample, text in enumerate(texts)
        ]
        verdicts = self._verdicts(programs, keep)
        self._ended = Counter(reason for _, reason in verdicts)
        passed = iter(verdicts)
        answers = [json.dumps([next(passed)[0] for _ in texts]) for texts in outputs]
        scores = score_all(self.metric, answers, [str(self.k)] * len(answers))
        return [
            Scored(json.dumps(list(texts), ensure_ascii=False), answer, score)
            for texts, answer, score in zip(outputs, answers, scores, strict=True)
        ]

    def _verdicts(self, programs: Sequence[tuple[str, str]], keep: Keep) -> list[tuple[bool, str]]:
        """Run the named programs, some at a time, and return whether each passed and why not."""
        anyway = self.benchmark.allow_unsandboxed_code
        verdicts: list[tuple[bool, str]] = []
        for start in range(0, len(programs), _AT_A_TIME):
            keys, some = zip(*programs[start : start + _AT_A_TIME], strict=True)

            def run(some: Sequence[str] = some) -> list[Any]:
                ran = sandbox.run_programs(some, anyway=anyway)
                return [[verdict.passed, verdict.reason] for verdict in ran]

            verdicts += [(bool(passed), str(reason)) for passed, reason in keep(keys, run)]
        return verdicts

    def facts(self) -> dict[str, Any]:
        """Record k, the sandbox's layers and how the programs ended."""
        layers = self._layers
        return {
            "k": self.k,
            "sandbox": list(layers.layers) if layers else [],
            "sandbox_missing": list(layers.missing) if layers else [],
            "programs": dict((self._ended or Counter()).most_common()),
        }


def program(question: Question, completion: str, *, chats: bool = False) -> str:
    """Return the program that passes when the completion passes the problem's tests.

    A chat model's reply is prose around fences. Where they hold the function itself, it stands
    behind the prompt's imports and helpers, which it may repeat; else they are its body.
    """
    parts = question.payload
    head, function = parts["prompt"], f"def {parts['entry_point']}("
    if chats:
        fences = _FENCE.findall(completion) or [completion]
        last = max((i for i, code in enumerate(fences) if function in code), default=-1)
        completion = fences[last] if last >= 0 else fences[0]
        if last >= 0 and function in head:
            head = head[: head.rindex(function)]
    return f"{head}{completion}\n{parts['test']}\ncheck({parts['entry_point']})\n"
