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
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import sha256_json, write_json
from selectit_dagster.evaluation import question_files
from selectit_dagster.evaluation.pairwise_judge import (
    Judge,
    LocalJudge,
    Pair,
    ServerJudge,
    letters,
    render,
)
from selectit_dagster.evaluation.tasks.task import (
    Keep,
    Prompt,
    Question,
    Scored,
    Task,
    kept_nowhere,
    register,
)
from selectit_dagster.inference.generation import Decoding
from selectit_dagster.inference.prompt_templates import render_prompt

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine


@register("alpaca-eval")
class AlpacaEvalTask(Task):
    """Open instructions, judged pairwise or not at all."""

    metric = "win-rate"
    instructs = True
    hub = question_files.HubData("tatsu-lab/alpaca_eval", files="alpaca_eval.json")

    @property
    def revision(self) -> int:
        """Answers that were not judged were once stored as if they had been."""
        return 2

    def files(self) -> list[Path]:
        """Return the JSON file of instructions and reference outputs."""
        patterns = ("alpaca_eval*.json", "*.json")
        return question_files.local_files(
            self.folder or Path(), patterns, "AlpacaEval instructions"
        )[:1]

    def all_questions(self) -> list[Question]:
        """Return the instructions, named by their place and content."""
        local = self.folder is not None
        records = self._local() if local else self.hub_records("eval")
        questions = []
        for number, record in enumerate(records):
            where = f"AlpacaEval instruction {number}"
            text = question_files.field(record, "instruction", where)
            reference = question_files.field(record, "output", where)
            group = str(record.get("dataset") or "")
            name = f"{number}-{sha256_json(text)[:8]}"
            questions.append(Question(name, group, text, reference))
        return questions

    def _local(self) -> list[dict[str, Any]]:
        path = self.files()[0]
        return question_files.objects(question_files.read_json(path), str(path))

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the tuning template filled with the instruction."""
        name, custom = self.template.name, self.template.custom
        text = render_prompt(name, question.text, tokenizer=engine.tokenizer, custom=custom)
        return Prompt(text, "")

    def decoding(self) -> Decoding:
        """Return greedy decoding."""
        return Decoding(self.benchmark.max_new_tokens or 2048)

    def check(self) -> None:
        """Refuse a judge that cannot answer, before there is anything to judge."""
        if self.benchmark.judge is not None:
            from selectit_dagster.inference.engine import Reader
            from selectit_dagster.inference.model_loading import load_tokenizer

            reader = Reader(load_tokenizer(self.benchmark.judge))
            letters(reader, render(Pair("Say yes.", "yes", "no"), swapped=False))

    def judge(self) -> Judge | None:
        """Return the judge that the experiment names, if it names one."""
        if self.benchmark.judge is None:
            return None
        if self.benchmark.judge.server is not None:
            return ServerJudge(self.benchmark.judge)
        from selectit_dagster.inference.engine import Engine
        from selectit_dagster.inference.model_loading import load_model

        engine = Engine(load_model(self.benchmark.judge))
        return LocalJudge(engine, self.benchmark.batch_tokens)

    def score(
        self,
        questions: Sequence[Question],
        outputs: Sequence[Sequence[str]],
        keep: Keep = kept_nowhere,
    ) -> list[Scored]:
        """Return the outputs with the judge's preference, or without a score."""
        from selectit_dagster.evaluation.metrics import score_all

        answers = [texts[0].strip() for texts in outputs]
        judge = self.judge()
        if judge is None:
            return [Scored(texts[0], answer, None) for texts, answer in zip(outputs, answers)]  # noqa: B905
        pairs = [Pair(q.text, a, q.reference) for q, a in zip(questions, answers, strict=True)]
        preferences = judge.prefer(pairs, keep)
        judged = [str(value) for value in preferences if value is not None]
        scores = iter(score_all(self.metric, judged, judged))
        return [
            Scored(texts[0], answer, None if value is None else next(scores))
            for texts, answer, value in zip(outputs, answers, preferences, strict=True)
        ]

    def data_identity(self) -> dict[str, str]:
        """Return what the data and the judge are known by."""
        identity = super().data_identity()
        if self.benchmark.judge is not None:
            from selectit_dagster.inference.model_identity import model_identity

            judge = self.benchmark.judge
            known: dict[str, Any] = dict(model_identity(judge))
            if (server := judge.server) is not None:
                known["server"] = [server.kind, server.model, server.launch]
            identity["judge"] = sha256_json(known)
        return identity

    def extra_files(self, rows: Sequence[tuple[Question, Scored]], out: Path) -> list[str]:
        """Write the outputs in the form of ``alpaca_eval --model_outputs``."""
        name = f"{self.benchmark.name}.model_outputs.json"
        outputs: list[dict[str, Any]] = [
            {
                "dataset": question.group,
                "instruction": question.text,
                "output": scored.answer,
                "generator": f"{out.parent.name}-{out.name}",
            }
            for question, scored in rows
        ]
        write_json(out / name, outputs)
        return [name]
