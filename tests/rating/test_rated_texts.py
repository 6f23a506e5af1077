"""What is rated of a record: turns, answers of a pair, responses without their thinking."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.home import Home
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import check_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.progress import Silent
from selectit_dagster.rating import levels
from selectit_dagster.rating.rated_texts import without_reasoning
from selectit_dagster.rating.score_reader import StoredScores
from selectit_dagster.report.explorer import write_explorer
from selectit_dagster.selection.explain import explain
from tests.report.test_explorer import unpacked


def pipeline_of(folder, model, rows, *, arms=None, **rating):
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    value = {
        "name": "tiny",
        "dataset": {"path": str(source)},
        "scoring_models": [{"name": "tiny", "path": str(model), "device": "cpu"}],
        "rating": {"num_prompts": 2, **rating},
        "selection": {"count": 2, "arms": arms or [{"kind": "selectit"}]},
    }
    return Pipeline(check_experiment(value, source="test"), Home(folder, "tiny"), at_home=True)


def run(pipeline):
    """Run the chain up to the ranking and return its rows by record id."""
    for stage in (pipeline.raw(), pipeline.curated(), pipeline.scores("tiny"), pipeline.ranking()):
        stage.run(Silent())
    rows = pq.read_table(pipeline.home.ranking / "ranking.parquet").to_pylist()
    return {row["record_id"]: row for row in rows}


def talk(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


TALKS = [
    {"id": "one", "messages": talk("Hello", "Hi there")},
    {"id": "two", "messages": talk("Say 1", "It is 1.", "Say 2", "two two", "Say 3", "three")},
    {"id": "three", "messages": talk("Count", "1 2 3", "Go on", "4 5 6")},
]


@pytest.mark.parametrize(("combine", "rule"), [("mean", None), ("min", min), ("last", None)])
def test_each_answer_is_rated_with_its_history_and_combined(
    tmp_path, tiny_model_folder, combine, rule
):
    ranked = run(
        each := pipeline_of(tmp_path, tiny_model_folder, TALKS, turns="each", combine=combine)
    )
    texts = pq.read_table(each.home.rated / "records.parquet").to_pylist()
    two = [row for row in texts if row["parent"] == "two"]
    assert [row["record_id"] for row in two] == ["two#turn-1", "two#turn-2", "two#turn-3"]
    assert two[0]["instruction"] == "Say 1" and two[1]["response"] == "two two"
    assert two[1]["instruction"] == "User: Say 1\nAssistant: It is 1.\nUser: Say 2"
    # each text rated as a record of its own is the second method
    alone = tmp_path / "alone"
    alone.mkdir()
    rows = [
        {"id": row["record_id"], "instruction": row["instruction"], "output": row["response"]}
        for row in texts
    ]
    single = run(pipeline_of(alone, tiny_model_folder, rows))
    for name in ("one", "two", "three"):
        parts = [single[r["record_id"]]["score"] for r in texts if r["parent"] == name]
        assert ranked[name]["parts"] == pytest.approx(parts)
        mean = sum(parts) / len(parts)
        expected = {"mean": mean, "min": min(parts), "last": parts[-1]}[combine]
        assert ranked[name]["score"] == pytest.approx(expected)
    assert len(ranked) == 3
    manifest = each.selected("selectit").run(Silent())
    assert manifest.counts["selected"] == 2


def test_explain_shows_what_was_rated(tmp_path, tiny_model_folder):
    pipeline = pipeline_of(tmp_path, tiny_model_folder, TALKS, turns="each")
    run(pipeline)
    home = pipeline.home
    scores = (("tiny", home.scores("tiny")),)
    found = explain("three", home.curated, home.ranking, scores, pipeline.rated_folder)
    assert [text.name for text in found.rated] == ["three#turn-1", "three#turn-2"]
    for text in found.rated:
        (model,) = text.models
        assert text.score == pytest.approx(model.sentence_score)
    shown = found.text()
    assert "rated: three#turn-2, score" in shown and "response: 4 5 6" in shown


def test_the_page_shows_every_rated_text_with_its_distributions(tmp_path, tiny_model_folder):
    pipeline = pipeline_of(tmp_path, tiny_model_folder, TALKS, turns="each")
    run(pipeline)
    pipeline.selected("selectit").run(Silent())
    write_explorer(pipeline.explorer("selectit"), tmp_path / "page")
    index = json.loads(unpacked(tmp_path / "page", "index"))
    texts = dict(zip(index["id"], json.loads(unpacked(tmp_path / "page", "texts-0")), strict=True))
    assert [part[:3] for part in texts["three"][3]] == [
        ["three#turn-1", "Count", "1 2 3"],
        ["three#turn-2", "User: Count\nAssistant: 1 2 3\nUser: Go on", "4 5 6"],
    ]
    names = [name for parts in index["parts"] for name in parts]
    assert len(names) == 6 and names[0].startswith(index["id"][0])
    tokens = np.frombuffer(unpacked(tmp_path / "page", "tokens"), np.float32).reshape(6, 1, 2)
    stored = StoredScores("tiny", pipeline.home.scores("tiny"), 2, 5)
    with Workspace(tmp_path) as work:
        (batch,) = stored.in_any_order(work)
    for name, p in zip(batch.record_ids.to_pylist(), batch.probabilities, strict=True):
        found = tokens[names.index(name), 0]
        np.testing.assert_allclose(found, levels.token_level(p), rtol=1e-5)
        score = next(t[3] for row in texts.values() for t in row[3] if t[0] == name)
        assert score == pytest.approx(float(levels.record_score(p, alpha=0.2)), abs=1e-6)


def test_the_last_turn_alone(tmp_path, tiny_model_folder):
    pipeline = pipeline_of(tmp_path, tiny_model_folder, TALKS, turns="last")
    run(pipeline)
    rows = pq.read_table(pipeline.home.rated / "records.parquet").to_pylist()
    assert [(r["record_id"], r["instruction"], r["response"]) for r in rows] == [
        ("one", "Hello", "Hi there"),
        ("two", "Say 3", "three"),
        ("three", "Go on", "4 5 6"),
    ]


THOUGHT = "<think>2 and 2\nis 4</think>\nWe add.\nFinal answer: 4"


@pytest.mark.parametrize(
    ("text", "reasoning", "expected"),
    [
        (THOUGHT, "with", THOUGHT),
        (THOUGHT, "without", "We add.\nFinal answer: 4"),
        (THOUGHT, "final-answer", "Final answer: 4"),
        ("<thinking>never closed", "without", ""),
        ("a <Reasoning>x</reasoning> b <think>y</think> c", "without", "a  b  c"),
        ("Long way.\n#### 72", "final-answer", "#### 72"),
        ("no marks at all", "final-answer", "no marks at all"),
        ("so \\boxed{7}", "final-answer", "\\boxed{7}"),
    ],
)
def test_thinking_is_rated_or_not(text, reasoning, expected):
    assert without_reasoning(text, reasoning) == expected


PAIRS = [
    {"id": f"p{n}", "prompt": f"Say {n}", "chosen": f"It is {n}. " * (1 + n), "rejected": "no " * n}
    for n in range(1, 6)
]


def test_pairs_are_kept_by_margin_and_floor_and_written_as_pairs(tmp_path, tiny_model_folder):
    arms = [{"kind": "preference-pairs", "margin": -9.0}]
    pipeline = pipeline_of(tmp_path, tiny_model_folder, PAIRS, pairs=True, arms=arms)
    ranked = run(pipeline)
    for row in ranked.values():
        chosen, rejected = row["parts"]
        assert row["score"] == pytest.approx(chosen - rejected)
    pipeline.selected("preference-pairs").run(Silent())
    written = (pipeline.home.selected("preference-pairs") / "data.jsonl").read_text().splitlines()
    best = sorted(ranked, key=lambda name: (-ranked[name]["score"], name))
    assert [json.loads(line) for line in written] == [
        next(pair for pair in PAIRS if pair["id"] == name) for name in best[:2]
    ]
    floor = sorted(row["parts"][0] for row in ranked.values())[2]
    arms = [{"kind": "preference-pairs", "margin": -9.0, "floor": floor}]
    floored = pipeline_of(tmp_path, tiny_model_folder, PAIRS, pairs=True, arms=arms)
    floored.selected("preference-pairs").run(Silent())
    rows = pq.read_table(floored.home.selected("preference-pairs") / "dataset.parquet")
    high = [name for name in best if ranked[name]["parts"][0] >= floor]
    assert rows.column("record_id").to_pylist() == high[:2]
    arms = [{"kind": "preference-pairs", "margin": 99.0}]
    none = pipeline_of(tmp_path, tiny_model_folder, PAIRS, pairs=True, arms=arms)
    with pytest.raises(UserError, match="0 have the margin and the floor"):
        none.selected("preference-pairs").run(Silent())


def test_a_record_that_is_no_pair_is_named_before_a_model_is_loaded(
    tmp_path, tiny_model_folder, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("selectit_dagster.inference.model_loading.load_model", refuse)
    rows = [*PAIRS, {"id": "odd", "prompt": "x", "chosen": "y"}]
    with pytest.raises(UserError, match="record odd has no text 'rejected'"):
        run(pipeline_of(tmp_path, tiny_model_folder, rows, pairs=True))


def test_records_that_are_rated_as_they_are_have_no_table_of_texts(tmp_path, tiny_model_folder):
    pipeline = pipeline_of(tmp_path, tiny_model_folder, TALKS)
    ranked = run(pipeline)
    assert not pipeline.home.rated.exists()
    assert "parts" not in ranked["one"]
