"""Tasks of lm-evaluation-harness give over our engine what they give over its own HFLM.

The harness is an extra, so these tests are skipped without it. To run them, use an
environment that has it: ``python -m pytest -m slow tests/evaluation/test_lm_eval.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation.evaluate import EvaluationRequest, evaluate
from selectit_dagster.evaluation.questions import QuestionsRequest, collect_questions
from selectit_dagster.experiment import Benchmark, ModelReference

pytest.importorskip("lm_eval", reason="lm-evaluation-harness, an extra, is not installed")
pytestmark = pytest.mark.slow

SHARED = {"dataset_path": "json", "test_split": "train", "doc_to_text": "{{question}}"}
TASKS = {
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_choice": ["A", "B", "C"],
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "phrases": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_target": "fox",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    },
}


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    words = ["fox", "the lazy dog", "brown", "quick over the"]
    records = [
        {
            "question": f"Below is a task, {'very ' * (n % 4)}short: {n}. Answer:",
            "choices": [words[n % 4], words[(n + 1) % 4], words[(n + 2) % 4]],
            "answer": n % 3,
        }
        for n in range(10)
    ]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    for name, own in TASKS.items():
        task = {"task": name, **SHARED, **own}
        task["dataset_kwargs"] = {"data_files": str(data)}
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


@pytest.fixture(params=["tiny", "stories"])
def reference(request, tiny_reference) -> ModelReference:
    """The tests' own model, and a real one whose tokenizer drops a first blank."""
    if request.param == "tiny":
        return tiny_reference
    folder = request.getfixturevalue("shared_data") / "models/stories260K"
    return ModelReference(path=str(folder), device="cpu")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_agrees_with_the_harness_own_model(name, task_folder, reference, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from selectit_dagster.inference.model_loading import load_model

    loaded = load_model(reference)
    theirs = simple_evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4),
        tasks=[name],
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        bootstrap_iters=0,
    )
    benchmark = Benchmark(name="b", task="lm-eval", path=str(task_folder), lm_eval_task=name)
    request = EvaluationRequest(reference, None, (benchmark,), "alpaca", None, 1)
    manifest = evaluate(request, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "b.parquet").to_pylist()
    samples = theirs["samples"][name]
    assert len(rows) == len(samples) == 10
    for row, sample in zip(rows, samples, strict=True):
        ours = json.loads(row["output"])
        for one, other in zip(ours, sample["resps"], strict=True):
            if name == "writing":
                assert one == other
            else:
                assert one[0][0] == pytest.approx(float(other[0][0]), abs=1e-4)
                assert one[0][1] == bool(other[0][1])
    metric = manifest.details["scores"]["b"]["metric"]
    expected = theirs["results"][name][f"{metric},none"]
    assert manifest.details["scores"]["b"]["score"] == pytest.approx(expected)
    assert manifest.details["benchmarks"]["b"]["left_truncated"] == {}


def test_the_harness_questions_are_gathered(task_folder, tmp_path):
    benchmark = Benchmark(name="b", task="lm-eval", path=str(task_folder), lm_eval_task="phrases")
    manifest = collect_questions(QuestionsRequest((benchmark,)), tmp_path / "out")
    assert manifest.counts["b"] == 10
    first = pq.read_table(tmp_path / "out" / "questions.parquet").to_pylist()[0]
    assert first["text"] == "Below is a task, short: 0. Answer:"


def test_a_task_that_the_harness_does_not_know_is_refused(task_folder, tmp_path):
    for path, where in ((None, "to the harness"), (str(task_folder), "in ")):
        benchmark = Benchmark(name="b", task="lm-eval", path=path, lm_eval_task="no-such-task")
        with pytest.raises(UserError, match=f"'no-such-task' is not known {where}"):
            collect_questions(QuestionsRequest((benchmark,)), tmp_path / "out")


def test_a_task_without_a_number_per_question_is_refused(task_folder, tiny_reference, tmp_path):
    whole = {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}
    task = json.loads((task_folder / "writing.yaml").read_text())
    task = {**task, "task": "translation", "metric_list": [whole]}
    (tmp_path / "translation.yaml").write_text(json.dumps(task))
    benchmark = Benchmark(
        name="b", task="lm-eval", path=str(tmp_path), lm_eval_task="translation", limit=2
    )
    request = EvaluationRequest(tiny_reference, None, (benchmark,), "alpaca", None, 1)
    with pytest.raises(UserError, match="translation has no metric that is one number"):
        evaluate(request, tmp_path / "out")


def test_a_text_longer_than_the_context_is_scored_in_windows(engine, tmp_path):
    from types import SimpleNamespace

    from lm_eval.models.huggingface import HFLM

    from selectit_dagster.evaluation.answer_journal import Journal
    from selectit_dagster.evaluation.lm_eval_adapter import EngineLM

    text = "the quick brown fox jumps over the lazy dog 0123456789 " * 40
    requests = [SimpleNamespace(args=(text,)), SimpleNamespace(args=("the fox",))]
    ours = EngineLM(engine, Journal(tmp_path / "j", {}), batch_tokens=2048, seed=1)
    theirs = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=2)
    expected = theirs.loglikelihood_rolling(requests)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-5)
