"""The comparison finds what is there, and claims nothing that is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.manifest import verify, write_manifest
from selectit_dagster.comparison.analysis import compare_scores
from selectit_dagster.comparison.arm_tables import cost_lines
from selectit_dagster.comparison.compare import ComparisonRequest, compare
from selectit_dagster.comparison.costs import cost_rows
from selectit_dagster.comparison.score_matrices import (
    BenchmarkScores,
    Run,
    load_benchmarks,
    unlike_the_paper,
)
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.evaluation.intervals import Questions
from selectit_dagster.evaluation.tasks.gsm8k import Gsm8kTask
from selectit_dagster.experiment import Benchmark, ComparisonSection
from tests.comparison.conftest import made_scores, write_evaluation

SECTION = ComparisonSection(resamples=2000)
TITLES = {
    "base": "the untuned base model",
    "selectit": "SelectIT's fifth",
    "random": "a random fifth",
    "full": "the full dataset",
}


def test_a_real_difference_is_found_and_said_in_one_sentence(world, tmp_path):
    evaluations = world({"base": -1.0, "selectit": 0.6, "random": 0.0, "full": 0.0})
    request = ComparisonRequest(evaluations, SECTION, share=0.2, titles=TITLES)
    manifest = compare(request, tmp_path / "out")
    arms = manifest.details["arms"]
    result = arms["selectit"]["results"]["sums"]
    assert result["verdict"] == "better"
    assert result["low"] > 0
    assert arms["selectit"]["sentence"].startswith(
        f"SelectIT's fifth beats a random fifth on sums by {100 * result['difference']:.1f} "
        f"points ({100 * result['low']:.1f} to {100 * result['high']:.1f}); "
        "no significant difference on words (minimum detectable effect at 80 % power: "
    )
    assert arms["full"]["sentence"].startswith(
        "No significant difference between the full dataset and a random fifth on sums and words"
    )
    assert arms["base"]["sentence"].startswith(
        "The untuned base model falls behind a random fifth on sums by "
    )
    assert arms["random"]["sentence"] == ""
    assert len(manifest.details["sentences"]) == 3


def test_the_figures_are_those_of_the_questions(world, tmp_path):
    evaluations = world({"selectit": 0.6, "random": 0.0})
    manifest = compare(ComparisonRequest(evaluations, SECTION), tmp_path / "out")
    means = {}
    for arm, _, folder in evaluations:
        values = pq.read_table(folder / "sums.parquet")["score"].to_numpy()
        means.setdefault(arm, []).append(values.mean())
    result = manifest.details["arms"]["selectit"]["results"]["sums"]
    assert result["run_means"] == pytest.approx(means["selectit"])
    assert result["mean"] == pytest.approx(np.mean(means["selectit"]))
    assert result["difference"] == pytest.approx(
        np.mean(means["selectit"]) - np.mean(means["random"])
    )
    average = manifest.details["arms"]["selectit"]["results"]["average"]
    words = manifest.details["arms"]["selectit"]["results"]["words"]
    assert average["difference"] == pytest.approx((result["difference"] + words["difference"]) / 2)


def test_everything_is_written_once_and_repeats(world, tmp_path):
    evaluations = world({"selectit": 0.2, "random": 0.0})
    costs = {
        "scoring": {"tiny": {"seconds": 90.0, "device": "cpu"}},
        "tuning": {
            "selectit": [{"seconds": 10.0, "tokens": 5000, "device": "cpu"}] * 3,
            "full": [{"seconds": 70.0, "tokens": 25_000, "device": "cpu"}],
        },
    }
    request = ComparisonRequest(evaluations, SECTION, costs=costs, share=0.2)
    manifest = compare(request, tmp_path / "out")
    assert verify(tmp_path / "out") == manifest
    assert compare(request, tmp_path / "out") == manifest
    assert compare(request, tmp_path / "again").digest == manifest.digest
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == manifest.details
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| tuning | selectit | 3 | 30 s | 15,000 | 0.00833 CPU-hours |  |" in table
    assert "instead of 1 min 10 s, so the scoring pays for itself after 2 runs" in table
    picture = (tmp_path / "out" / "forest.png").read_bytes()
    assert picture[:4] == b"\x89PNG"
    assert len(picture) < 70_000


def test_costs_add_up_per_arm_with_the_arithmetic_behind_them():
    run = {"seconds": 10.0, "tokens": 5000, "device": "cuda:0", "base_parameters": 1000}
    rows = cost_rows(
        {
            "scoring": {
                "small": {
                    "seconds": 90.0,
                    "device": "cpu",
                    "tokens": 900,
                    "token_positions": 1000,
                    "parameters": 10,
                },
                "large": {"seconds": 30.0, "device": "cpu"},
            },
            "choosing": {
                "selectit": {"seconds": 1.0, "models": ["small", "large"]},
                "token-level": {"seconds": 1.0, "models": ["small"]},
                "random": {"seconds": 0.5, "models": []},
            },
            "tuning": {
                "selectit": [{**run, "method": "lora", "processes": 2}] * 3,
                "token-level": [{**run, "method": "full"}],
                "random": [{**run, "method": "lora", "recomputed": True}],
            },
        }
    )
    found = {(row["what"], row["name"]): row for row in rows}
    assert found["scoring", "small"]["operations"] == 2 * 10 * 1000
    assert found["tuning", "selectit"]["operations"] == 3 * 4 * 1000 * 5000
    assert found["tuning", "selectit"]["device_hours"] == pytest.approx(3 * 10 * 2 / 3600)
    assert found["tuning", "token-level"]["operations"] == 6 * 1000 * 5000
    assert found["tuning", "random"]["operations"] == 6 * 1000 * 5000
    assert found["in all", "selectit"]["seconds"] == 90 + 30 + 1 + 30
    assert found["in all", "token-level"]["seconds"] == 90 + 1 + 10
    assert found["in all", "random"]["seconds"] == 10.5
    assert found["in all", "selectit"]["device"] == "CPU and GPU"
    assert "| in all | random | 1 | 10 s |" in "\n".join(cost_lines(rows))


def test_the_champion_is_the_best_run_of_the_best_tuned_arm(world, tmp_path):
    evaluations = world({"base": 3.0, "selectit": 0.6, "random": 0.0})
    manifest = compare(ComparisonRequest(evaluations, SECTION), tmp_path / "out")
    champion = manifest.details["champion"]
    averages = manifest.details["arms"]["selectit"]["results"]["average"]["run_means"]
    assert champion["arm"] == "selectit"
    assert champion["seed"] == 1 + int(np.argmax(averages))
    assert champion["average"] == pytest.approx(max(averages))


@pytest.mark.slow
def test_equal_arms_are_hardly_ever_called_different():
    claims = 0
    section = ComparisonSection(resamples=400)
    runs = [Run(arm, seed, Path()) for arm in ("selectit", "random") for seed in (1, 2, 3)]
    for seed in range(20):
        made = made_scores({"selectit": 0.0, "random": 0.0}, seed=seed)
        benchmarks = [
            BenchmarkScores(
                name,
                "exact match",
                Questions.mean(400),
                {arm: np.stack([scores[name] for scores in some]) for arm, some in made.items()},
                1,
            )
            for name in ("sums", "words")
        ]
        found = compare_scores(benchmarks, runs, section)
        results = found["arms"]["selectit"]["results"]
        claims += any(results[name]["verdict"] != "not significant" for name in ("sums", "words"))
    assert claims <= 3  # P(more than 3 of 20 at a rate of 5 %) is below 2 %


def test_single_runs_are_judged_by_mcnemar(world, tmp_path):
    evaluations = world({"selectit": 0.6, "random": 0.0}, runs=1)
    manifest = compare(ComparisonRequest(evaluations, SECTION), tmp_path / "out")
    result = manifest.details["arms"]["selectit"]["results"]["sums"]
    assert result["test"] == "mcnemar"
    assert result["p"] == result["mcnemar"]["p"]
    assert not manifest.details["method"]["covers_runs"]
    assert any("one training run" in note for note in manifest.details["method"]["notes"])


def test_a_macro_average_is_recognised_by_its_score(tmp_path):
    generator = np.random.default_rng(0)
    evaluations = []
    for arm in ("selectit", "random"):
        values = {"tasks": (generator.random(301) < 0.5).astype(float)}
        folder = write_evaluation(tmp_path / arm, values, macro=True, groups=3)
        evaluations.append((arm, 1, folder))
    manifest = compare(ComparisonRequest(tuple(evaluations), SECTION), tmp_path / "out")
    assert manifest.details["benchmarks"]["tasks"]["groups"] == 3


def test_arms_that_answered_other_questions_are_refused(tmp_path):
    scores = np.ones(10)
    write_evaluation(tmp_path / "a", {"sums": scores})
    write_evaluation(tmp_path / "b", {"sums": scores[:9]})
    request = ComparisonRequest(
        (("selectit", 1, tmp_path / "a"), ("random", 1, tmp_path / "b")), SECTION
    )
    with pytest.raises(ArtefactError, match=r"do not hold the same questions \(9 and 10, 9 in"):
        compare(request, tmp_path / "out")


def test_an_arm_without_a_benchmark_is_refused(tmp_path):
    write_evaluation(tmp_path / "a", {"sums": np.ones(5), "words": np.ones(5)})
    write_evaluation(tmp_path / "b", {"sums": np.ones(5)})
    request = ComparisonRequest(
        (("selectit", 1, tmp_path / "a"), ("random", 1, tmp_path / "b")), SECTION
    )
    with pytest.raises(ArtefactError, match="no benchmark words"):
        compare(request, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop_columns(["score"]), "cannot be read as benchmark outputs: .*score"),
        (lambda rows: rows.slice(0, 0), "holds no scored question, or one twice"),
        (lambda rows: pa.concat_tables([rows, rows]), "holds no scored question, or one twice"),
        (lambda rows: rows.slice(0, 6), r"score 0\.625000 is neither the mean of its questions"),
    ],
)
def test_an_evaluation_whose_answers_do_not_give_its_score_is_refused(tmp_path, change, message):
    evaluations = []
    for arm in ("selectit", "random"):
        folder = write_evaluation(tmp_path / arm, {"sums": np.array([1.0] * 5 + [0.0] * 3)})
        path = folder / "sums.parquet"
        pq.write_table(change(pq.read_table(path)), path)
        # whoever wrote these answers sealed them: the files are what their manifest says
        details = json.loads((folder / "manifest.json").read_text())["details"]
        write_manifest(
            folder, kind="evaluation", fingerprint={}, files=[path.name], details=details
        )
        evaluations.append((arm, 1, folder))
    with pytest.raises(ArtefactError, match=message) as caught:
        compare(ComparisonRequest(tuple(evaluations), SECTION), tmp_path / "out")
    assert caught.value.message.startswith(str(tmp_path / "selectit" / "sums.parquet"))
    assert "\n" not in caught.value.message
    assert caught.value.hint == "evaluate that arm again"


def test_a_baseline_that_is_no_arm_is_refused(world, tmp_path):
    evaluations = world({"selectit": 0.0, "full": 0.0}, runs=1)
    with pytest.raises(UserError, match="'random' is not one of the arms: selectit, full"):
        compare(ComparisonRequest(evaluations, SECTION), tmp_path / "out")


def test_arms_that_always_agree_make_no_trouble(tmp_path):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, {"sums": np.ones(20)})
    request = ComparisonRequest(
        (("selectit", 1, tmp_path / "a"), ("random", 1, tmp_path / "b")), SECTION
    )
    result = compare(request, tmp_path / "out").details["arms"]["selectit"]["results"]["sums"]
    assert result["difference"] == 0
    assert result["smallest_detectable"] == pytest.approx(6 / 20)
    assert result["verdict"] == "not significant"


@pytest.mark.parametrize(
    ("model", "published"),
    [("meta-llama/Llama-2-7b-hf", True), ("/models/llama-2-7b", True), ("tiny", False)],
)
def test_published_rows_stand_beside_ours_only_for_the_papers_model(tmp_path, model, published):
    evaluations = []
    for arm, values in (("selectit", [1.0, 0.0] * 20), ("random", [0.0] * 40)):
        folder = write_evaluation(
            tmp_path / arm, {"mmlu": np.array(values), "gsm8k": np.array(values)}
        )
        evaluations.append((arm, 1, folder))
    request = ComparisonRequest(tuple(evaluations), SECTION, base_model=model)
    compare(request, tmp_path / "out")
    table = (tmp_path / "out" / "paper_table.md").read_text()
    assert "| selectit | 50.0 | 50.0 | 50.0 | +50.0 |" in table
    assert ("| SelectIT (published) | 47.4 | 16.8 |  |  |" in table) == published


def test_what_was_not_asked_as_in_the_paper_is_named():
    asked = {"task": "gsm8k", "protocol": "paper", "questions": 9, "too_long": []}
    assert unlike_the_paper("GSM", asked) == ()
    own = Gsm8kTask(Benchmark(name="g", task="gsm8k")).facts()
    own = {**asked, **own, "questions_with_fewer_shots": 2}
    assert unlike_the_paper("GSM", own) == (
        "GSM: worked examples written for this project",
        "GSM: 2 of 9 questions with fewer worked examples, which did not fit",
    )
    strict = {"task": "tydiqa", "protocol": "strict", "questions": 9, "too_long": ["a"]}
    assert [remark.split(": ")[1] for remark in unlike_the_paper("T", strict)] == [
        "strict protocol",
        "instructions worded for this project",
        "1 questions did not fit and are left out",
    ]


def test_what_one_runs_judge_could_not_read_is_left_out_for_all_counted_and_shown(world, tmp_path):
    evaluations = world({"selectit": 0.0, "random": 0.0}, runs=1)
    folder = evaluations[0][2]
    table = pq.read_table(folder / "sums.parquet").to_pylist()
    for row in table:
        row["status"] = "ok"
    table[3] |= {"status": "not_judged", "score": None}
    pq.write_table(pa.Table.from_pylist(table), folder / "sums.parquet")
    scored = [row["score"] for row in table if row["score"] is not None]
    details = {"scores": {"sums": {"score": float(np.mean(scored)), "n": 399, "metric": "win"}}}
    write_manifest(folder, kind="evaluation", fingerprint={}, files=[], details=details)
    other = {"scores": {"sums": _stored_score(evaluations[1][2])}}
    write_manifest(evaluations[1][2], kind="evaluation", fingerprint={}, files=[], details=other)
    runs = [Run(*evaluation) for evaluation in evaluations]
    (found,) = load_benchmarks(runs)
    assert (found.count, found.not_judged) == (399, 1)
    assert "1 questions that not every run's judge compared" in found.remarks[0]
    request = ComparisonRequest(evaluations, SECTION, share=0.2)
    details = compare(request, tmp_path / "out").details
    assert details["benchmarks"]["sums"]["not_judged"] == 1
    assert "left out for all arms" in (tmp_path / "out" / "table.md").read_text()


def _stored_score(folder: Path) -> dict:
    values = pq.read_table(folder / "sums.parquet")["score"].to_pylist()
    return {"score": float(np.mean(values)), "n": len(values), "metric": "win"}
