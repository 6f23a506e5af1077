"""The questions that training data must not contain."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation.questions import QuestionsRequest, collect_questions
from selectit_dagster.experiment import Benchmark


def test_all_questions_are_gathered_whatever_the_sample(exact, mmlu_folder, tmp_path):
    mmlu = Benchmark(name="mmlu", task="mmlu", path=str(mmlu_folder), limit=2)
    few = exact.model_copy(update={"limit": 3})
    manifest = collect_questions(QuestionsRequest((few, mmlu)), tmp_path / "out")
    assert manifest.counts == {"words": 12, "mmlu": 8, "questions": 20}
    rows = pq.read_table(tmp_path / "out" / "questions.parquet").to_pylist()
    assert rows[0] == {
        "benchmark": "words",
        "question_id": "q0",
        "text": "Say the word that stands near 0.\nthe quick brown fox",
    }
    again = collect_questions(QuestionsRequest((exact, mmlu)), tmp_path / "out")
    assert again == manifest


def test_an_empty_benchmark_is_refused(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    request = QuestionsRequest((Benchmark(name="none", task="exact-match", path=str(path)),))
    with pytest.raises(UserError, match="no questions"):
        collect_questions(request, tmp_path / "out")


def test_no_benchmarks_make_an_empty_table(tmp_path):
    manifest = collect_questions(QuestionsRequest(()), tmp_path / "out")
    assert manifest.counts == {"questions": 0}
