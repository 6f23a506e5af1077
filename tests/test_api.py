"""From Python: score, rank and select give datasets, on the command's own files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import selectit_dagster
from selectit_dagster.cli.main import cli
from selectit_dagster.errors import UserError

ROWS = [
    {
        "instruction": f"Add {n} and {n % 3}.",
        "input": "",
        "output": f"{n + n % 3}" * (1 + n % 4),
        "tag": n,
    }
    for n in range(20)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def scored(tiny_model_folder, store):
    return selectit_dagster.score(
        ROWS, str(tiny_model_folder), store=store, num_prompts=3, progress=False
    )


def test_a_list_comes_back_as_a_dataset_with_rank_and_score(scored):
    best = selectit_dagster.select(scored, share=0.25)
    assert best.column_names == [
        "instruction",
        "input",
        "output",
        "tag",
        "record_id",
        "rank",
        "score",
    ]
    assert list(best["rank"]) == [1, 2, 3, 4, 5]
    assert list(best["score"]) == sorted(best["score"], reverse=True)
    for row in best:
        assert ROWS[row["tag"]]["output"] == row["output"]
    every = selectit_dagster.rank(scored)
    assert list(every["tag"])[:5] == list(best["tag"]) and len(every) == 20
    assert set(every["status"]) == {"ok"}


def test_other_arithmetic_scores_nothing_again(scored, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("selectit_dagster.inference.model_loading.load_model", refuse)
    plain = selectit_dagster.rank(scored)
    other = selectit_dagster.rank(scored, alpha=5.0, num_prompts=2)
    assert list(plain["score"]) != list(other["score"])
    arm = {"kind": "expected-rating", "weights": {"rule": "softmax"}}
    weighted = selectit_dagster.select(scored, arm=arm, count=4)
    assert sum(weighted["weight"]) == pytest.approx(4)
    assert list(selectit_dagster.select(scored, count=5)["tag"]) == list(plain["tag"])[:5]


def test_the_command_takes_the_same_choice_from_the_same_files(
    scored, store, tiny_model_folder, tmp_path
):
    best = selectit_dagster.select(scored, share=0.25)
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = ["select", "-i", str(source), "-m", str(tiny_model_folder), "-o", str(out)]
    arguments += ["-k", "3", "--share", "0.25", "--scores", str(store), "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert [json.loads(line)["tag"] for line in out.read_text().splitlines()] == list(best["tag"])
    assert '"selected": 5' in done.output


def test_a_dataset_and_a_path_are_taken_too(tiny_model_folder, tmp_path):
    from datasets import Dataset

    given = Dataset.from_list(ROWS)
    options = {"models": [{"path": str(tiny_model_folder), "name": "tiny"}], "num_prompts": 3}
    best = selectit_dagster.select(given, count=3, progress=False, **options)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    same = selectit_dagster.select(path, count=3, progress=False, **options)
    assert same.column_names == ["instruction", "input", "response", "record_id", "rank", "score"]
    assert list(same["response"]) == list(best["output"])


def test_what_is_wrong_is_said_before_a_model_is_loaded(scored, tmp_path):
    with pytest.raises(UserError, match="share"):
        selectit_dagster.select(scored, share=2.0)
    with pytest.raises(UserError, match="did not score this dataset"):
        selectit_dagster.rank(scored, models=["huge"])
    with pytest.raises(UserError, match="needs models"):
        selectit_dagster.select(ROWS)
    with pytest.raises(UserError, match="has its models"):
        selectit_dagster.select(scored, models=["x"])


def test_neither_dagster_nor_mlflow_nor_torch_is_imported():
    code = (
        "import sys, selectit_dagster; light = set(sys.modules) & {'torch', 'numpy', 'pydantic'};"
        "selectit_dagster.select; from selectit_dagster.cli import select_command; import "
        "selectit_dagster.orchestration.pipeline;"
        "print(sorted(light), sorted({m.split('.')[0] for m in sys.modules} "
        "& {'dagster', 'mlflow', 'torch', 'transformers', 'datasets'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
