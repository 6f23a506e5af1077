"""AlpacaEval: 805 open instructions (Li et al. 2023).

Greedy answers in the tuning template, written as ``<name>.model_outputs.json`` in the form
that ``alpaca_eval --model_outputs`` takes. Without a judge that is all: the benchmark has
outputs and no score. With ``judge`` a model, here or behind a server of the user's, compares each
answer with the reference output of the data; the score is then the mean preference and compares
with nothing but itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import sha256_json, write_json
from selectit_dagster.evaluation import question_files
from selectit_dagster.evaluation.answer_journal import Keep, kept_nowhere
from selectit_dagster.evaluation.pairwise_judge import Pair, judge_letters, open_judge
from selectit_dagster.evaluation.question_files import Record
from selectit_dagster.evaluation.tasks.prompt_forms import InstructionTask
from selectit_dagster.evaluation.tasks.task import Question, Scored, register


@register("alpaca-eval")
class AlpacaEvalTask(InstructionTask):
    """Open instructions, judged pairwise or not at all."""

    metric = "win-rate"
    patterns = ("alpaca_eval*.json", "*.json")
    hub = question_files.HubData("tatsu-lab/alpaca_eval", files="alpaca_eval.json")
    split = "eval"
    max_new_tokens = 2048

    @property
    def revision(self) -> int:
        """Answers that were not judged were once stored as if they had been."""
        return 2

    def read(self, path: Path) -> list[Record]:
        """Return the instructions of the JSON file."""
        return question_files.read_json_records(path)

    def question(self, record: Record) -> Question:
        """Return an instruction, named by its place and content."""
        text, reference = record.text("instruction"), record.text("output")
        name = f"{record.number}-{sha256_json(text)[:8]}"
        return Question(name, str(record.get("dataset") or ""), text, reference)

    def check(self) -> None:
        """Refuse a judge that cannot answer, before there is anything to judge."""
        if self.benchmark.judge is not None:
            judge_letters(self.benchmark.judge)

    def score(
        self,
        questions: Sequence[Question],
        outputs: Sequence[Sequence[str]],
        keep: Keep = kept_nowhere,
    ) -> list[Scored]:
        """Return the outputs with the judge's preference, or without a score."""
        from selectit_dagster.evaluation.metrics import score_all

        answers = [texts[0].strip() for texts in outputs]
        liked: list[float | None] = [None] * len(answers)
        if self.benchmark.judge is not None:
            pairs = [Pair(q.text, a, q.reference) for q, a in zip(questions, answers, strict=True)]
            with open_judge(self.benchmark.judge) as judge:
                liked = judge.prefer(pairs, keep)
        judged = [str(value) for value in liked if value is not None]
        scores = iter(score_all(self.metric, judged, judged))
        return [
            Scored(texts[0], answer, None if value is None else next(scores))
            for texts, answer, value in zip(outputs, answers, liked, strict=True)
        ]

    def data_identity(self) -> dict[str, str]:
        """Return what the data and the judge are known by."""
        identity = super().data_identity()
        if (judge := self.benchmark.judge) is not None:
            from selectit_dagster.inference.model_identity import model_identity

            known: dict[str, Any] = dict(model_identity(judge))
            if (server := judge.server) is not None:
                known["server"] = [server.kind, server.model, server.launch]
            identity["judge"] = sha256_json(known)
        return identity

    def extra_files(self, rows: Sequence[tuple[Question, Scored]], out: Path) -> list[str]:
        """Write the outputs in the form of ``alpaca_eval --model_outputs``."""
        name = f"{self.benchmark.name}.model_outputs.json"
        generator = f"{out.parent.name}-{out.name}"
        outputs: list[dict[str, Any]] = [
            {
                "dataset": question.group,
                "instruction": question.text,
                "output": scored.answer,
                "generator": generator,
            }
            for question, scored in rows
        ]
        write_json(out / name, outputs)
        return [name]
