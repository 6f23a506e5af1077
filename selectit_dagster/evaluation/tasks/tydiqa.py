"""TyDiQA gold passage: answers from a passage in nine languages (Clark et al. 2020).

One worked example in the question's language, passages cut to 512 tokens, greedy answers of
at most 50 tokens up to the end of the line, SQuAD's F1, mean over languages. The paper
protocol draws 100 questions per language, strict asks all.

Where a language has no training questions, its worked example is a test question, which is
then not asked; which languages these are is recorded with the result.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction, question_files
from selectit_dagster.evaluation.question_files import Record
from selectit_dagster.evaluation.tasks.prompt_forms import FewShotTask
from selectit_dagster.evaluation.tasks.task import Question, register

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine

_PASSAGE_TOKENS = 512
# instruction, passage, question, answer; written for this project
_WORDS = {
    "arabic": ("أجب عن السؤال اعتمادًا على النص التالي.", "النص:", "السؤال:", "الجواب:"),
    "bengali": ("নিচের অনুচ্ছেদ থেকে প্রশ্নটির উত্তর দাও।", "অনুচ্ছেদ:", "প্রশ্ন:", "উত্তর:"),
    "english": ("Use the passage to answer the question.", "Passage:", "Question:", "Answer:"),
    "finnish": ("Vastaa kysymykseen tekstin perusteella.", "Teksti:", "Kysymys:", "Vastaus:"),
    "indonesian": ("Jawablah pertanyaan berdasarkan teks.", "Teks:", "Pertanyaan:", "Jawaban:"),
    "korean": ("글을 읽고 질문에 답하세요.", "글:", "질문:", "답:"),
    "russian": ("Ответь на вопрос по тексту.", "Текст:", "Вопрос:", "Ответ:"),
    "swahili": ("Jibu swali kwa kutumia kifungu.", "Kifungu:", "Swali:", "Jibu:"),
    "telugu": ("పేరా ఆధారంగా ప్రశ్నకు జవాబు ఇవ్వండి.", "పేరా:", "ప్రశ్న:", "జవాబు:"),
}


@register("tydiqa")
class TydiqaTask(FewShotTask):
    """One-shot reading, F1, mean over languages."""

    metric = "answer-f1"
    strict_metric = "strict-answer-f1"
    macro = True
    default_shots = 1
    per_group = 100
    reads_strictly = True
    split = "dev"
    hub = question_files.HubData("google-research-datasets/tydiqa", "secondary_task")
    max_new_tokens, stop = 50, ("\n",)

    def files(self) -> list[Path]:
        """Return the dev and train files, of all languages in one or one per language."""
        return self._part("dev") + self._part("train")

    def _part(self, split: str) -> list[Path]:
        patterns = (
            f"tydiqa-goldp-*-{split}.json*",
            f"tydiqa-*-{split}/*.json*",
            f"*_tydiqa_{split}.json*",
        )
        return question_files.local_files(self.folder, patterns, f"TyDiQA {split} questions")

    def records(self, split: str) -> list[Record]:
        """Return the questions, each with its passage and the texts of its answers."""
        if self.folder is None:
            found = self.hub_records({"dev": "validation"}.get(split, split))
            return [Record({**one, "texts": one["answers"]["text"]}, one.where) for one in found]
        return [
            Record({**qa, "context": paragraph.text("context"), "texts": _texts(qa)}, qa.where)
            for path in self._part(split)
            for article in question_files.read_json_records(path, "data")
            for paragraph in article.objects("paragraphs")
            for qa in paragraph.objects("qas")
        ]

    def question(self, record: Record) -> Question:
        """Return a question; its id begins with its language."""
        name, answers = record.text("id"), record["texts"]
        language = name.split("-")[0]
        if language not in _WORDS:
            raise UserError(
                f"TyDiQA question {name}: {language!r} is none of {', '.join(_WORDS)}",
                hint="an id begins with its language, as in the published files: english-...",
            )
        reference = json.dumps(answers, ensure_ascii=False)
        payload = {"context": record["context"], "answers": answers}
        return Question(name, language, record.text("question"), reference, payload)

    def all_questions(self) -> list[Question]:
        """Return all dev questions, read once."""
        return self._dev

    @cached_property
    def _dev(self) -> list[Question]:
        return super().all_questions()

    def askable(self) -> list[Question]:
        """Return the dev questions without those that serve as worked examples."""
        used = {q.question_id for examples in self.examples.values() for q in examples}
        return [question for question in self._dev if question.question_id not in used]

    @cached_property
    def _train(self) -> list[Question]:
        return [self.question(record) for record in self.records("train")]

    @property
    def borrowed(self) -> list[str]:
        """The languages whose worked examples are test questions."""
        own = {question.group for question in self._train if question.payload["answers"]}
        languages = {question.group for question in self._dev}
        return sorted(languages - own) if self.shots else []

    def find_examples(self) -> dict[str, list[Question]]:
        """Return the seeded worked examples of each language, those with an answer."""
        found = {}
        for language in sorted({question.group for question in self._dev}):
            source = self._dev if language in self.borrowed else self._train
            pool = [q for q in source if q.group == language and q.payload["answers"]]
            # a draw that a seed must reproduce, nothing secret
            draw = random.Random(f"{self.benchmark.seed}/{language}/shots")  # noqa: S311
            some = draw.sample(pool, min(self.shots, len(pool)))
            found[language] = [replace(q, reference=q.payload["answers"][0]) for q in some]
        return found

    def head(self, question: Question, shots: int) -> str:
        """Return the instruction in the question's language."""
        return _WORDS[question.group][0]

    def ask(self, question: Question, engine: Engine) -> str:
        """Return passage and question; the passage's first 512 tokens, the protocol's own cut."""
        _, passage, ask, answer = _WORDS[question.group]
        context = question.payload["context"]
        ids = engine.encode(context, special=False)
        if len(ids) > _PASSAGE_TOKENS:
            context = engine.decode_new((), ids[:_PASSAGE_TOKENS])
        return f"{passage} {context}\n{ask} {question.text}\n{answer}"

    def gold(self, question: Question) -> str:
        """Return the first of the reference answers."""
        answers: list[str] = question.payload["answers"]
        return answers[0] if answers else ""

    def answer(self, output: str, question: Question) -> str:
        """Return the answer span."""
        return answer_extraction.tydiqa_answer(output, self.protocol)

    def facts(self) -> dict[str, Any]:
        """Record the languages whose worked example comes from the test questions."""
        return {"shots_from_test_questions": self.borrowed}


def _texts(question: Record) -> list[str]:
    return [answer.text("text") for answer in question.objects("answers")]
