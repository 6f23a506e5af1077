"""A whole evaluation: stored, resumable, honest about what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.manifest import verify
from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import evaluate as module
from selectit_dagster.evaluation.evaluate import (
    EvaluationRequest,
    evaluate,
    evaluation_fingerprint,
)
from selectit_dagster.evaluation.tasks.humaneval import STOP, HumanEvalTask
from selectit_dagster.experiment import Benchmark, ModelReference
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.generation import Decoding
from selectit_dagster.inference.prompt_templates import render_prompt


def request(reference, *benchmarks, **changes):
    values = {
        "base": reference,
        "checkpoint": None,
        "benchmarks": benchmarks,
        "template": "alpaca",
        "custom_template": None,
        "seed": 1,
    }
    return EvaluationRequest(**{**values, **changes})


def rows(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / f"{name}.parquet").to_pylist()


class KilledError(Exception):
    """Stands for kill -9 between two batches."""


class KillAfter:
    """A progress reporter that ends the process, so to speak, after some reports."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def update(self, done: int, total: int, **figures: float) -> None:
        self.left -= 1
        if self.left < 0:
            raise KilledError


def test_every_question_is_stored_with_prompt_output_answer_and_score(
    tiny_reference, exact, exact_file, tmp_path
):
    out = tmp_path / "out"
    manifest = evaluate(request(tiny_reference, exact), out)
    questions = [json.loads(line) for line in exact_file.read_text().splitlines()]
    stored = rows(out, "words")
    assert [row["question_id"] for row in stored] == [q["id"] for q in questions]
    for row, question in zip(stored, questions, strict=True):
        assert row["prompt"] == render_prompt("alpaca", question["instruction"], question["input"])
        assert row["answer"] == row["output"].strip()
        assert row["reference"] == question["answer"]
        assert row["score"] == float(row["answer"] == question["answer"])
        assert row["group"] == question["family"]
    score = json.loads((out / "scores.json").read_text())["words"]
    assert score == manifest.details["scores"]["words"]
    assert score["n"] == 12
    assert score["metric"] == "exact-match"
    assert manifest.counts == {"questions_words": 12, "questions": 12, "too_long": 0}
    assert not (out / ".partial").exists()
    verify(out)


def test_a_finished_evaluation_is_not_done_again(tiny_reference, exact, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = evaluate(request(tiny_reference, exact), out)
    monkeypatch.setattr(module, "load", None)
    assert evaluate(request(tiny_reference, exact), out) == first


@pytest.mark.parametrize("reports", [1, 3])
def test_a_killed_evaluation_resumes_to_the_unbroken_result(
    tiny_reference, exact, tmp_path, reports
):
    whole = evaluate(request(tiny_reference, exact), tmp_path / "whole")
    out = tmp_path / "broken"
    with pytest.raises(KilledError):
        evaluate(request(tiny_reference, exact), out, KillAfter(reports))
    journal = out / ".partial" / "words.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > reports
    # what a kill in the middle of a write leaves
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    again = evaluate(request(tiny_reference, exact), out)
    assert again.digest == whole.digest


def test_a_journal_of_an_earlier_plan_of_batches_mixes_no_answers(
    tiny_reference, mmlu_folder, tmp_path, monkeypatch
):
    benchmark = Benchmark(name="mmlu", task="mmlu", path=str(mmlu_folder), batch_tokens=64)
    whole, out = tmp_path / "whole", tmp_path / "out"
    evaluate(request(tiny_reference, benchmark), whole)
    with monkeypatch.context() as earlier:
        # a version whose batches came in another order
        plan = Engine.plan
        earlier.setattr(Engine, "plan", lambda *given, **more: plan(*given, **more)[::-1])
        with pytest.raises(KilledError):
            evaluate(request(tiny_reference, benchmark), out, KillAfter(3))
    evaluate(request(tiny_reference, benchmark), out)
    found, expected = (
        [list(json.loads(row["output"]).values()) for row in rows(folder, "mmlu")]
        for folder in (out, whole)
    )
    assert len({tuple(shares) for shares in expected}) == len(expected)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_journal_that_knows_answers_by_their_batchs_number_is_begun_anew(
    tiny_reference, exact, tmp_path
):
    whole = evaluate(request(tiny_reference, exact), tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KilledError):
        evaluate(request(tiny_reference, exact), out, KillAfter(1))
    journal = out / ".partial" / "words.jsonl"
    identity = json.loads(journal.read_text().splitlines()[0])["identity"]
    batch = {"key": "0", "value": [["of another question", 1, "eos"]] * 3}
    lines = [{"identity": identity}, batch, {**batch, "key": "1"}]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert evaluate(request(tiny_reference, exact), out).digest == whole.digest


KILLED = """
import os, signal, sys
from pathlib import Path
from selectit_dagster.evaluation.evaluate import EvaluationRequest, evaluate
from selectit_dagster.experiment import Benchmark, ModelReference

class Killer:
    def update(self, done, total, **figures):
        if done >= 5:
            os.kill(os.getpid(), signal.SIGKILL)

benchmark = Benchmark.model_validate_json(sys.argv[2])
request = EvaluationRequest(ModelReference(path=sys.argv[1]), None, (benchmark,), "alpaca", None, 1)
evaluate(request, Path(sys.argv[3]), Killer())
"""


def test_an_evaluation_that_died_by_kill_9_resumes_to_the_unbroken_result(
    tiny_reference, exact, tmp_path, monkeypatch
):
    out = tmp_path / "killed"
    arguments = [tiny_reference.path, exact.model_dump_json(), str(out)]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()[-2000:]
    done = len((out / ".partial" / "words.jsonl").read_text().splitlines()) - 1
    assert done > 0
    from selectit_dagster.evaluation import benchmark_runner

    made = []
    plain = benchmark_runner.generate_batch
    monkeypatch.setattr(
        benchmark_runner,
        "generate_batch",
        lambda *given, **named: (made.append(1), plain(*given, **named))[1],
    )
    whole = evaluate(request(tiny_reference, exact), tmp_path / "whole")
    batches = len(made)
    made.clear()
    again = evaluate(request(tiny_reference, exact), out)
    assert len(made) == batches - done
    assert again.digest == whole.digest
    assert rows(out, "words") == rows(tmp_path / "whole", "words")


def test_a_new_benchmark_leaves_the_others_results_alone(
    tiny_reference, exact, exact_file, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    evaluate(request(tiny_reference, exact), out)
    before = rows(out, "words")
    second = exact.model_copy(update={"name": "second", "limit": 4})
    asked = []
    plain_run = module._Evaluation._run_one
    monkeypatch.setattr(
        module._Evaluation,
        "_run_one",
        lambda self, name, *rest: (asked.append(name), plain_run(self, name, *rest)),
    )
    manifest = evaluate(request(tiny_reference, exact, second), out)
    assert asked == ["second"]
    assert rows(out, "words") == before
    assert set(manifest.details["scores"]) == {"words", "second"}
    assert manifest.details["scores"]["second"]["n"] == 4


def test_the_fingerprint_names_model_data_and_settings_but_not_places(
    tiny_reference, second_tiny_model_folder, exact, exact_file, tmp_path
):
    known = evaluation_fingerprint(request(tiny_reference, exact))
    (tmp_path / "other").mkdir()
    moved = shutil.copy(exact_file, tmp_path / "other")
    copy = exact.model_copy(update={"path": str(moved), "batch_tokens": 64})
    assert evaluation_fingerprint(request(tiny_reference, copy)) == known
    other = ModelReference(path=str(second_tiny_model_folder))
    assert evaluation_fingerprint(request(other, exact)) != known
    assert evaluation_fingerprint(request(tiny_reference, exact, seed=2)) != known
    changed = exact.model_copy(update={"max_new_tokens": 9})
    assert evaluation_fingerprint(request(tiny_reference, changed)) != known
    exact_file.write_text(exact_file.read_text().replace("fox", "dog"))
    assert evaluation_fingerprint(request(tiny_reference, exact)) != known


def test_the_sample_does_not_depend_on_the_evaluations_seed(tiny_reference, exact, tmp_path):
    few = exact.model_copy(update={"limit": 5})
    names = []
    for seed in (1, 2):
        out = tmp_path / str(seed)
        evaluate(request(tiny_reference, few, seed=seed), out)
        names.append([row["question_id"] for row in rows(out, "words")])
    assert names[0] == names[1]
    assert len(names[0]) == 5


def test_a_question_that_does_not_fit_is_named_and_has_no_score(
    tiny_reference, exact, exact_file, tmp_path
):
    records = exact_file.read_text()
    long = {"id": "long", "instruction": "fox " * 600, "answer": "x"}
    exact_file.write_text(records + json.dumps(long) + "\n")
    out = tmp_path / "out"
    manifest = evaluate(request(tiny_reference, exact), out)
    row = rows(out, "words")[-1]
    assert (row["question_id"], row["status"], row["score"]) == ("long", "too_long", None)
    assert manifest.counts["too_long"] == 1
    assert manifest.details["benchmarks"]["words"]["too_long"] == ["long"]
    assert manifest.details["scores"]["words"]["n"] == 12


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "instruction": "x"}', "field 'answer'"),
        ('{"id": "q1", "instruction": "x", "answer": "y"}', "'q1' occurs 2 times"),
        ("{broken", "line 13: not JSON"),
        ('["a", "x", "y"]', r"exact\.jsonl, line 13: expected an object with the question's"),
    ],
)
def test_a_broken_file_is_refused_before_a_model_is_loaded(
    tiny_reference, exact, exact_file, tmp_path, monkeypatch, line, message
):
    exact_file.write_text(exact_file.read_text() + line + "\n")
    monkeypatch.setattr(module, "load", None)
    with pytest.raises(UserError, match=message) as caught:
        evaluate(request(tiny_reference, exact), tmp_path / "out")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"task": "exact-match"}, "benchmark b: task exact-match needs a path", "a local file"),
        (
            {"task": "exact-match", "path": "someone/no-questions"},
            "dataset 'someone/no-questions' is no local file or folder",
            "a local folder in the published layout",
        ),
        ({"task": "lm-eval"}, "benchmark b: task lm-eval needs lm_eval_task", "lm_eval_task: arc_"),
    ],
)
def test_a_benchmark_without_its_data_is_refused_before_a_model_is_loaded(
    tiny_reference, tmp_path, monkeypatch, settings, message, hint
):
    monkeypatch.setattr(module, "load", None)
    with pytest.raises(UserError, match=message) as caught:
        evaluate(request(tiny_reference, Benchmark(name="b", **settings)), tmp_path / "out")
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


def test_a_judge_without_the_letters_is_refused_before_a_model_is_loaded(
    tiny_reference, alpaca_eval_file, tmp_path, monkeypatch
):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    judge = tmp_path / "judge"
    shutil.copytree(tiny_reference.path, judge)
    words = Tokenizer(models.WordLevel({"?": 0, "better": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(judge)
    benchmark = Benchmark(
        name="ae", task="alpaca-eval", path=str(alpaca_eval_file), judge={"path": str(judge)}
    )
    monkeypatch.setattr(module, "load", None)
    with pytest.raises(UserError, match="no token of its own for each of the letters") as caught:
        evaluate(request(tiny_reference, benchmark), tmp_path / "out")
    assert str(judge) in caught.value.message
    assert caught.value.hint == "use another judge model"


def test_a_benchmark_of_which_no_question_fits_is_refused(
    tiny_reference, exact, exact_file, tmp_path
):
    long = {"id": "long", "instruction": "fox " * 600, "answer": "x"}
    exact_file.write_text(json.dumps(long) + "\n")
    with pytest.raises(UserError, match=r"words: no question fits into .* 512") as caught:
        evaluate(request(tiny_reference, exact), tmp_path / "out")
    assert "a longer context" in caught.value.hint


def test_sampled_decoding_is_reproducible_and_resumable(
    tiny_reference, humaneval_file, tmp_path, monkeypatch
):
    decoding = Decoding(6, STOP, temperature=0.8, top_p=0.95, samples=3)
    monkeypatch.setattr(HumanEvalTask, "decoding", lambda self: decoding)
    benchmark = Benchmark(
        name="code", task="humaneval", path=str(humaneval_file), max_new_tokens=6, batch_tokens=64
    )
    try:
        whole = evaluate(request(tiny_reference, benchmark), tmp_path / "whole")
    except UserError as refusal:
        pytest.skip(str(refusal))
    with pytest.raises(KilledError):
        evaluate(request(tiny_reference, benchmark), tmp_path / "broken", KillAfter(2))
    again = evaluate(request(tiny_reference, benchmark), tmp_path / "broken")
    assert again.digest == whole.digest
    other = evaluate(request(tiny_reference, benchmark, seed=2), tmp_path / "other")
    assert (
        rows(tmp_path / "other", "code")[0]["output"]
        != rows(tmp_path / "whole", "code")[0]["output"]
    )
    assert other.details["benchmarks"]["code"]["sandbox"]


def test_programs_that_have_run_are_not_run_again(
    tiny_reference, humaneval_file, tmp_path, monkeypatch
):
    from selectit_dagster.evaluation import sandbox
    from selectit_dagster.evaluation.tasks import humaneval

    monkeypatch.setattr(humaneval, "_AT_A_TIME", 1)
    monkeypatch.setattr(sandbox, "require_sandbox", lambda anyway: None)
    ran = []

    def run_programs(programs, anyway):
        if len(ran) == 1:
            ran.append("the machine dies")
            raise KilledError
        ran.append(programs)
        return [sandbox.Verdict(True, "passed", sandbox.LAYERS)]

    monkeypatch.setattr(sandbox, "run_programs", run_programs)
    benchmark = Benchmark(
        name="code",
        task="humaneval",
        path=str(humaneval_file),
        protocol="strict",
        max_new_tokens=4,
    )
    with pytest.raises(KilledError):
        evaluate(request(tiny_reference, benchmark), tmp_path / "out")
    manifest = evaluate(request(tiny_reference, benchmark), tmp_path / "out")
    assert len(ran) == 3
    assert manifest.details["scores"]["code"]["score"] == 1.0


def test_all_benchmarks_run_side_by_side(
    tiny_reference,
    tmp_path,
    mmlu_folder,
    bbh_folder,
    gsm8k_folder,
    tydiqa_folder,
    alpaca_eval_file,
):
    common = {"max_new_tokens": 6, "batch_tokens": 512}
    benchmarks = [
        Benchmark(name="mmlu", task="mmlu", path=str(mmlu_folder), **common),
        Benchmark(name="bbh", task="bbh", path=str(bbh_folder), **common),
        Benchmark(name="gsm8k", task="gsm8k", path=str(gsm8k_folder), **common, protocol="strict"),
        Benchmark(name="tydiqa", task="tydiqa", path=str(tydiqa_folder), **common),
        Benchmark(name="ae", task="alpaca-eval", path=str(alpaca_eval_file), **common),
    ]
    out = tmp_path / "arm" / "seed-1"
    manifest = evaluate(request(tiny_reference, *benchmarks), out)
    scores = manifest.details["scores"]
    assert {n: s["n"] for n, s in scores.items()} == {"mmlu": 8, "bbh": 6, "gsm8k": 3, "tydiqa": 5}
    assert all(s["interval"][0] <= s["score"] <= s["interval"][1] for s in scores.values())
    assert manifest.details["unscored"] == ["ae"]
    outputs = json.loads((out / "ae.model_outputs.json").read_text())
    assert [set(o) for o in outputs] == [{"dataset", "instruction", "output", "generator"}] * 3
    assert outputs[0]["generator"] == "arm-seed-1"
    # eight worked examples do not fit into 512 tokens
    facts = manifest.details["benchmarks"]
    assert facts["gsm8k"]["questions_with_fewer_shots"] == 3
    assert facts["tydiqa"]["shots_from_test_questions"] == ["finnish"]
    probabilities = json.loads(rows(out, "mmlu")[0]["output"])
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-5)


def test_a_checkpoint_is_evaluated_over_its_base(
    tiny_model_folder, second_tiny_model_folder, tmp_path, exact, monkeypatch
):
    from selectit_dagster.artefacts.manifest import write_manifest
    from selectit_dagster.inference.model_loading import load_model
    from selectit_dagster.tuning import checkpoint

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_manifest(folder, kind="checkpoint", fingerprint={}, files=[], digest="d" * 64)
    asked = []

    def load_checkpoint(base, path):
        asked.append(path)
        return load_model(ModelReference(path=str(second_tiny_model_folder)))

    monkeypatch.setattr(checkpoint, "load_checkpoint", load_checkpoint)
    base = ModelReference(path=str(tiny_model_folder))
    plain = evaluate(request(base, exact), tmp_path / "plain")
    tuned = evaluate(request(base, exact, checkpoint=folder), tmp_path / "tuned")
    assert asked == [folder]
    assert tuned.fingerprint["checkpoint"] == "d" * 64
    assert rows(tmp_path / "tuned", "words") != rows(tmp_path / "plain", "words")
    assert plain.fingerprint["checkpoint"] is None
