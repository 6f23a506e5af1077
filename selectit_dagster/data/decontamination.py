"""Decontamination: records that contain a question of a benchmark.

A record is contaminated when it shares a run of ``ngram`` words (13 by default) with a
question. Words are compared in normal form without punctuation; in scripts without blanks
every character is a word. A question of fewer words than that counts only when the
record's whole instruction (with its input) is that question: a short question inside a
long text is too often a coincidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.data.text import words
from selectit_dagster.errors import UserError, first_line


@dataclass(frozen=True)
class Hit:
    """The question that a record contains."""

    benchmark: str
    question_id: str
    gram: str


class Decontaminator:
    """An index over the questions of all benchmarks.

    Every run of n words contains a run of m = n // 2 + 1 words that starts at a multiple
    of n - m + 1. So only those aligned runs of a record are looked up, and a hit is then
    verified at full length: exact, and several times quicker than looking up every run.
    """

    def __init__(self, questions: Iterable[tuple[str, str, str]], ngram: int) -> None:
        self.ngram = ngram
        self.short = ngram // 2 + 1
        self.stride = ngram - self.short + 1
        self.grams: dict[tuple[str, ...], tuple[str, str]] = {}
        self.parts: set[tuple[str, ...]] = set()
        self.whole: dict[tuple[str, ...], tuple[str, str]] = {}
        self.questions: Counter[str] = Counter()
        self.too_short: Counter[str] = Counter()
        for benchmark, question_id, text in questions:
            self._add(benchmark, question_id, words(text))

    def _add(self, benchmark: str, question_id: str, tokens: list[str]) -> None:
        self.questions[benchmark] += 1
        name = (benchmark, question_id)
        if len(tokens) < self.ngram:
            self.too_short[benchmark] += 1
            if tokens:
                self.whole.setdefault(tuple(tokens), name)
            return
        for start in range(len(tokens) - self.ngram + 1):
            self.grams.setdefault(tuple(tokens[start : start + self.ngram]), name)
        for start in range(len(tokens) - self.short + 1):
            self.parts.add(tuple(tokens[start : start + self.short]))

    def hit(self, instruction: str, given: str, response: str) -> Hit | None:
        """Return the first question that the record contains, or None."""
        asked = words(f"{instruction}\n{given}")
        name = self.whole.get(tuple(asked)) if len(asked) < self.ngram else None
        if name is not None:
            return Hit(*name, " ".join(asked))
        tokens = asked + words(response)
        short, parts = self.short, self.parts
        for start in range(0, len(tokens) - short + 1, self.stride):
            if tuple(tokens[start : start + short]) in parts:
                found = self._verified(tokens, start)
                if found is not None:
                    return found
        return None

    def _verified(self, tokens: list[str], around: int) -> Hit | None:
        """Return the full-length run that contains the short one at ``around``."""
        first = max(0, around - (self.ngram - self.short))
        for start in range(first, min(around, len(tokens) - self.ngram) + 1):
            gram = tuple(tokens[start : start + self.ngram])
            name = self.grams.get(gram)
            if name is not None:
                return Hit(*name, " ".join(gram))
        return None


def read_questions(path: Path) -> list[tuple[str, str, str]]:
    """Return (benchmark, question_id, text) of ``questions.parquet`` or the folder it lies in.

    Raises
    ------
    UserError
        When it is not there or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = path / "questions.parquet" if path.is_dir() else path
    columns = ["benchmark", "question_id", "text"]
    try:
        table = pq.read_table(file, columns=columns)
        values = [table.column(name).cast(pa.string()).to_pylist() for name in columns]
        rows = zip(*values, strict=True)
        return [(str(a), str(b), text or "") for a, b, text in rows]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{file} cannot be read as the questions of the benchmarks: {first_line(error)}",
            hint="materialise benchmark_questions first, or switch curation.decontamination off",
        ) from error
