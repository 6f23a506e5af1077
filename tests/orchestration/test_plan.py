"""The plan of a run, what it took beside it, and the budget that ends scoring cleanly."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from small_home import fill, make_pipeline

from selectit_dagster.artefacts.home import Home
from selectit_dagster.cli.main import cli
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import check_experiment
from selectit_dagster.inference.model_loading import load_tokenizer
from selectit_dagster.orchestration import plans, run_costs, run_plan
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.plans import Plan, PlanRow
from selectit_dagster.progress import Silent
from selectit_dagster.tuning.tune import TuningRequest, tune

RECORDS = 300


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "rows.jsonl"
    rows = (
        {"instruction": f"Say {n}.", "input": "", "output": f"It is {n}. " * (1 + n % 9)}
        for n in range(RECORDS)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pipeline_of(source, model, home, **more):
    value = {
        "name": "tiny",
        "dataset": {"path": str(source)},
        "scoring_models": [{"name": "tiny", "path": str(model), "device": "cpu"}],
        "rating": {"num_prompts": 2},
        "cost": {"per_hour": 7.2},
        **more,
    }
    return Pipeline(check_experiment(value, source="test"), Home(home, "tiny"), at_home=True)


def test_the_plan_counts_what_is_left_and_makes_nothing(source, tiny_model_folder, tmp_path):
    pipeline = pipeline_of(source, tiny_model_folder, tmp_path / "home")
    made = run_plan.plan(pipeline)
    (row,) = made.rows
    assert (row.stage, row.total, row.done) == ("uncertainty_scores/tiny", RECORDS, 0)
    assert row.prompts == 2 * RECORDS and row.seconds > 0
    assert made.money(1800) == pytest.approx(3.6)
    assert not (tmp_path / "home").exists()
    for stage in (pipeline.raw(), pipeline.curated(), pipeline.scores("tiny")):
        manifest = stage.run(Silent())
    # all records were tokenised for the plan, so its count is exact
    assert row.tokens == pytest.approx(manifest.details["tokens"], rel=0.01)
    assert row.low == row.high == row.tokens
    (row,) = run_plan.plan(pipeline).rows
    assert (row.done, row.prompts, row.seconds) == (RECORDS, 0, 0.0)


def test_a_sample_gives_an_interval_that_holds_the_true_count(
    source, tiny_model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_plan, "_COUNTED", 100)
    pipeline = pipeline_of(source, tiny_model_folder, tmp_path / "home")
    (row,) = run_plan.plan(pipeline).rows
    tokenizer = load_tokenizer(pipeline.experiment.scoring_models[0])
    assert tokenizer is not None and row.low < row.tokens < row.high
    for stage in (pipeline.raw(), pipeline.curated(), pipeline.scores("tiny")):
        manifest = stage.run(Silent())
    assert row.low <= manifest.details["tokens"] <= row.high


def test_records_that_do_not_fit_are_no_work_in_the_plan_of_tuning(
    source, tiny_model_folder, tmp_path
):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"instruction": "Any?", "answer": "no"}\n')
    tuning = {"base_model": {"path": str(tiny_model_folder), "device": "cpu"}, "batch_size": 8}
    pipeline = pipeline_of(
        source,
        tiny_model_folder,
        tmp_path / "home",
        tuning=tuning | {"epochs": 2, "max_length": 100, "method": "full"},
        benchmarks=[{"name": "b", "task": "exact-match", "path": str(questions)}],
    )
    for stage in (pipeline.raw(), pipeline.questions(), pipeline.curated()):
        stage.run(Silent())
    planner = run_plan._Planner(pipeline, tmp_path / "scratch", Silent())
    planned = planner._training(60)
    request = TuningRequest(planner._dataset(60), pipeline.tuning, 1)
    counts = tune(request, tmp_path / "checkpoint").counts
    assert 10 < counts["trained"] < 50 < counts["trained"] + counts["skipped"] == 60
    assert (planned.steps, planned.tokens) == (counts["steps"], counts["tokens"])
    # what the time goes with holds the padding too
    assert planned.positions > planned.tokens


def test_what_a_run_took_stands_beside_its_plan(tmp_path, source, tiny_model_folder):
    pipeline = pipeline_of(source, tiny_model_folder, tmp_path / "home")
    rows = [PlanRow("uncertainty_scores/tiny", 300, 0, 600, 9000.0, 8000.0, 10000.0, 36.0)]
    made = Plan(rows, 7.2, "€")
    pipeline.home.folder.mkdir(parents=True)
    plans.keep_plan(made, pipeline.home)
    assert plans.kept_plan(pipeline.home) == made
    assert plans.kept_plan(Home(tmp_path, "other")) is None
    assert plans.planned_seconds(pipeline.scores("tiny")) == 36
    assert plans.planned_seconds(pipeline.ranking()) is None
    table = plans.plan_table(made, {"uncertainty_scores/tiny": 42.0})
    assert list(table[0])[-4:] == ["planned", "planned €", "took", "took €"]
    assert list(table[0].values())[-4:] == ["36 s", "0.07", "42 s", "0.08"]
    assert list(table[-1]) == list(table[0])
    assert [cell for cell in table[-1].values() if cell] == ["all", "36 s", "0.07", "42 s", "0.08"]
    assert plans.actual_seconds(pipeline) == dict.fromkeys(plans.actual_seconds(pipeline), 0.0)


def test_the_report_shows_the_plan_that_was_kept_beside_what_was_taken(tmp_path):
    pipeline = fill(make_pipeline(tmp_path, tuning=False))
    rows = [PlanRow("uncertainty_scores/little", 300, 0, 600, seconds=7260.0)]
    plans.keep_plan(Plan(rows, None, "€"), pipeline.home)
    pipeline.report().run(Silent())
    page = (pipeline.home.report / "report.html").read_text(encoding="utf-8")
    assert "2 h 1 min" in page and "what it took" in page


def test_the_command_prints_the_plan_and_keeps_it(source, tiny_model_folder, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"name: tiny\ndataset: {{path: {source}}}\nrating: {{num_prompts: 1}}\n"
        f"scoring_models: [{{name: tiny, path: {tiny_model_folder}}}]\n"
    )
    home = str(tmp_path / "home")
    done = CliRunner().invoke(cli, ["plan", str(file), "--home", home], catch_exceptions=False)
    assert "uncertainty_scores/tiny" in done.output
    arguments = ["plan", str(file), "--home", home, "--kept", "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert json.loads(done.output)["actual"]["uncertainty_scores/tiny"] == 0


def test_a_budget_ends_scoring_with_what_is_done_kept_and_named(
    source, tiny_model_folder, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    small = {"rating": {"num_prompts": 2, "max_batch_tokens": 500}}
    limited = pipeline_of(source, tiny_model_folder, home, budget={"hours": 1.0}, **small)
    limited.raw().run(Silent())
    limited.curated().run(Silent())
    clock = iter(range(0, 10_000_000, 600))
    with monkeypatch.context() as patch:
        # ten minutes at each look
        patch.setattr(run_costs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        with pytest.raises(UserError, match="model tiny has") as caught:
            limited.scores("tiny").run(Silent())
    assert "goes on from there" in caught.value.hint
    # what was spent counts in the next run, whatever it would still need
    with pytest.raises(UserError, match="the budget is used up"):
        limited.scores("tiny").run(Silent())
    more = pipeline_of(source, tiny_model_folder, home, budget={"hours": 90.0}, **small)
    manifest = more.scores("tiny").run(Silent())
    assert manifest.counts["resumed"] > 0
    assert manifest.counts["ok"] == RECORDS


def test_money_needs_a_price(source, tiny_model_folder, tmp_path):
    with pytest.raises(UserError, match=r"budget.money needs cost.per_hour"):
        pipeline_of(source, tiny_model_folder, tmp_path, cost={}, budget={"money": 3})
    priced = pipeline_of(source, tiny_model_folder, tmp_path, budget={"money": 3.6, "hours": 2})
    assert priced.experiment.budget_seconds == pytest.approx(1800)
