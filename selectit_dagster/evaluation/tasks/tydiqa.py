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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction, question_files
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Task, register
from selectit_dagster.inference.generation import Decoding

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


@dataclass(frozen=True)
class _Data:
    """All dev questions, each language's worked examples, the languages that borrow theirs."""

    dev: list[Question]
    shots: dict[str, list[Question]]
    borrowed: list[str]


@register("tydiqa")
class TydiqaTask(Task):
    """One-shot reading, F1, mean over languages."""

    metric = "answer-f1"
    macro = True
    default_shots = 1
    per_group = 100
    reads_strictly = True
    hub = question_files.HubData("google-research-datasets/tydiqa", "secondary_task")
    _data: _Data | None = None

    def files(self) -> list[Path]:
        """Return the dev and train files, of all languages in one or one per language."""
        return self._split("dev") + self._split("train")

    def _split(self, split: str) -> list[Path]:
        patterns = (
            f"tydiqa-goldp-*-{split}.json*",
            f"tydiqa-*-{split}/*.json*",
            f"*_tydiqa_{split}.json*",
        )
        return question_files.local_files(
            self.folder or Path(), patterns, f"TyDiQA {split} questions"
        )

    def all_questions(self) -> list[Question]:
        """Return all dev questions."""
        return self._load().dev

    def askable(self) -> list[Question]:
        """Return the dev questions without those that serve as worked examples."""
        used = {q.question_id for name in self._load().borrowed for q in self._load().shots[name]}
        return [question for question in self._load().dev if question.question_id not in used]

    def _load(self) -> _Data:
        if self._data is None:
            dev, train = list(self._records("dev")), list(self._records("train"))
            shots: dict[str, list[Question]] = {}
            borrowed = []
            for language in sorted({question.group for question in dev}):
                pool = _answered(train, language)
                if not pool and self.shots:
                    pool = _answered(dev, language)
                    borrowed.append(language)
                # a draw that a seed must reproduce, nothing secret
                draw = random.Random(f"{self.benchmark.seed}/{language}/shots")  # noqa: S311
                shots[language] = draw.sample(pool, min(self.shots, len(pool)))
            self._data = _Data(dev, shots, borrowed)
        return self._data

    def _records(self, split: str) -> Iterator[Question]:
        if self.folder is None:
            for record in self.hub_records({"dev": "validation"}.get(split, split)):
                answers = record["answers"]["text"]
                yield self._question(record["id"], record["context"], record["question"], answers)
            return
        for path in self._split(split):
            for article in question_files.objects(
                question_files.read_json(path), str(path), "data"
            ):
                for paragraph in question_files.objects(
                    article, f"{path}, an article", "paragraphs"
                ):
                    context = question_files.field(paragraph, "context", f"{path}, a paragraph")
                    for qa in question_files.objects(paragraph, f"{path}, a paragraph", "qas"):
                        yield self._local_question(qa, context, path)

    def _local_question(self, qa: dict[str, Any], context: str, path: Path) -> Question:
        name = question_files.field(qa, "id", f"{path}, a question")
        where = f"{path}, question {name}"
        answers = question_files.objects(qa, where, "answers")
        texts = [
            question_files.field(answer, "text", f"{where}, its answers") for answer in answers
        ]
        return self._question(name, context, question_files.field(qa, "question", where), texts)

    def _question(self, name: str, context: str, text: str, answers: list[str]) -> Question:
        language = name.split("-")[0]
        if language not in _WORDS:
            raise UserError(
                f"TyDiQA question {name}: {language!r} is none of {', '.join(_WORDS)}",
                hint="an id begins with its language, as in the published files: english-...",
            )
        reference = json.dumps(answers, ensure_ascii=False)
        return Question(name, language, text, reference, {"context": context, "answers": answers})

    def most_shots(self) -> int:
        """Return the number asked for, where every language has so many, else the fewest."""
        return min(len(examples) for examples in self._load().shots.values())

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the instruction, the language's worked example and the question."""
        words = _WORDS[question.group]
        examples = self._load().shots[question.group][:shots]
        parts = [words[0]]
        parts += [f"{_ask(q, words, engine)} {q.payload['answers'][0]}" for q in examples]
        return Prompt("\n\n".join([*parts, _ask(question, words, engine)]), question.group)

    def decoding(self) -> Decoding:
        """Return greedy decoding up to the end of the line."""
        return Decoding(self.benchmark.max_new_tokens or 50, ("\n",))

    def metric_name(self) -> str:
        """Return the protocol's metric."""
        return self.metric if self.protocol == "paper" else "strict-answer-f1"

    def gold(self, question: Question) -> str:
        """Return the first of the reference answers."""
        answers: list[str] = question.payload["answers"]
        return answers[0] if answers else ""

    def answer(self, output: str, question: Question) -> str:
        """Return the answer span."""
        return answer_extraction.tydiqa_answer(output, self.protocol)

    def facts(self) -> dict[str, Any]:
        """Record the languages whose worked example comes from the test questions."""
        return {"shots_from_test_questions": self._load().borrowed}


def _answered(questions: list[Question], language: str) -> list[Question]:
    """Return a language's questions that can serve as worked examples."""
    return [q for q in questions if q.group == language and q.payload["answers"]]


def _ask(question: Question, words: tuple[str, str, str, str], engine: Engine) -> str:
    _, passage, ask, answer = words
    context = _cut(question.payload["context"], engine)
    return f"{passage} {context}\n{ask} {question.text}\n{answer}"


def _cut(passage: str, engine: Engine) -> str:
    """Return the passage's first 512 tokens as text: the protocol's own cut."""
    ids = engine.encode(passage, special=False)
    if len(ids) <= _PASSAGE_TOKENS:
        return passage
    return engine.decode_new((), ids[:_PASSAGE_TOKENS])
