"""The whole chain on tiny real models, through the command that users type."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import read_manifest, verify
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.pipeline import Pipeline

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "SELECTIT_DEBUG": ""}


def selectit(*arguments: object, env: dict[str, str] | None = None):
    """Run the command in a process of its own, as a user does."""
    code = "from selectit_dagster.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env or ENV,
        timeout=300,
        check=False,
    )


def write_world(folder: Path, models: list[Path], *, records: int = 24) -> Path:
    """Write a dataset, a benchmark and an experiment over two tiny models."""
    rows = [
        {
            "instruction": f"Name the number after {i}.",
            "input": "",
            "output": f"The number after {i} is {i + 1}.",
        }
        for i in range(records)
    ]
    rows += [rows[0], {"instruction": "No response here."}]
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    questions = [
        {"id": f"q{i}", "family": "next", "instruction": f"What follows {i}?", "answer": str(i + 1)}
        for i in range(8)
    ]
    (folder / "bench.jsonl").write_text(
        "\n".join(json.dumps(q) for q in questions), encoding="utf-8"
    )
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
name: tiny
dataset: {{path: data.json}}
scoring_models:
  - {{name: one, path: {models[0]}}}
  - {{name: two, path: {models[1]}}}
rating: {{num_prompts: 2}}
selection:
  share: 0.25
  arms: [{{kind: selectit}}, {{kind: random, seeds: [1]}}]
tuning:
  base_model: {{path: {models[0]}}}
  seeds: [1]
  epochs: 1
  batch_size: 4
  micro_batch_size: 4
  max_length: 400
  rank: 4
benchmarks:
  - {{name: next, task: exact-match, path: bench.jsonl, max_new_tokens: 4}}
comparison: {{resamples: 200}}
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model_folder, second_tiny_model_folder):
    """A finished run: the experiment file, its home, and what the command printed."""
    folder = tmp_path_factory.mktemp("world")
    path = write_world(folder, [tiny_model_folder, second_tiny_model_folder])
    answer = selectit("run", path, "--home", folder / "home")
    assert answer.returncode == 0, answer.stderr
    return path, folder / "home", answer


def line_of(path: Path, home: Path) -> Pipeline:
    experiment = load_experiment(path)
    return Pipeline(experiment, Home(home.resolve(), experiment.name))


def test_every_stage_is_made_whole(world):
    path, home, _ = world
    line = line_of(path, home)
    for phase in line.phases():
        for stage in phase:
            manifest = read_manifest(stage.folder)
            assert manifest is not None, stage.title
            if stage.asset != "report":
                assert verify(stage.folder).files, stage.title


def test_the_summary_accounts_for_every_record_and_names_the_places(world):
    _, home, answer = world
    text = answer.stdout
    for line in ("read", "rejected while reading", "curated", "ranked", "selected by selectit"):
        assert line in text
    assert str(home / "experiments" / "tiny" / "report" / "report.html") in text
    assert str(home / "mlflow") in text
    assert "selectit ui" in text


def test_a_second_run_makes_nothing(world):
    path, home, _ = world
    answer = selectit("run", path, "--home", home, "--json")
    facts = json.loads(answer.stdout)
    assert facts["materialised"] == []
    assert len(facts["current"]) > 10


def test_every_asset_has_an_mlflow_run_below_a_parent(world):
    _, home, _ = world
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    rows = [r for r in runs if r.data.tags["selectit.level"] == "arm"]
    assert {r.data.tags["arm"] for r in rows} == {"base", "selectit", "random"}
    parents = {r.info.run_id for r in runs if r.data.tags["selectit.level"] == "parent"}
    children = [r for r in runs if r.data.tags["selectit.level"] == "asset"]
    assert all(r.data.tags["mlflow.parentRunId"] in parents for r in children)
    assert all(r.info.status == "FINISHED" for r in runs)
    tracked = {r.data.tags["asset"] for r in children}
    assert {
        "raw_dataset",
        "curated_dataset",
        "uncertainty_scores/one",
        "ranking",
        "selected_dataset",
        "production_dataset",
        "lora_checkpoints",
        "benchmark_evaluations",
        "arm_comparison",
    } <= tracked
    evaluation = next(r for r in children if r.data.tags["asset"] == "benchmark_evaluations")
    assert "next" in evaluation.data.metrics


def test_the_champion_in_mlflow_loads_back_to_the_checkpoints_logits(world, tmp_path, monkeypatch):
    path, home, _ = world
    import torch
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from peft import PeftModel

    from selectit_dagster.inference.model_loading import load_model

    line = line_of(path, home)
    uri = f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    version = client.get_model_version_by_alias("tiny", "champion")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    champion = json.loads((line.home.comparison / "comparison.json").read_text())["champion"]
    unit = next(u for u in line.units.values() if u.arm.startswith(champion["arm"]))
    assert model.name == f"{unit.arm}-seed-{champion['seed']}"
    adapter = download_artifacts(model.artifact_location, dst_path=str(tmp_path))
    base = line.tuning.base_model
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    stored = line.home.checkpoint(unit.arm, champion["seed"]) / "adapter"
    with torch.no_grad():
        logits = [
            PeftModel.from_pretrained(load_model(base).model, folder).eval()(ids).logits
            for folder in (adapter, stored)
        ]
        plain = load_model(base).model(ids).logits
    # loaded three times, and so perhaps summed in another order: equal in float32, not to the bit
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(*logits, **close)
    assert (logits[0] - plain).abs().max() > 1e-3

    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # puts it back: MLflow writes it there too
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model("models:/tiny@champion")
    with torch.no_grad():
        by_mlflow = loaded.unwrap_python_model().model(ids).logits
    torch.testing.assert_close(by_mlflow, logits[1], **close)
    assert len(loaded.predict(["Say something."], params=None)) == 1
    assert "chosen on the reported test questions" in version.description
    assert f"{champion['average']:.4f}" in version.description
    assert version.tags["data_version"]
    assert version.tags["arm"] == champion["arm"]


def test_questions_and_trained_tokens_can_be_browsed_in_mlflow(world, tmp_path):
    path, home, _ = world
    import pyarrow.parquet as pq
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id

    def shown(asset: str, file: str) -> dict:
        found = client.search_runs([experiment], f"tags.asset = '{asset}'", max_results=1)[0]
        entry = {"path": file, "type": "table"}
        assert entry in json.loads(found.data.tags["mlflow.loggedArtifacts"])
        local = client.download_artifacts(found.info.run_id, file, str(tmp_path))
        return json.loads(Path(local).read_text())

    answers = shown("untuned_evaluation", "answers/next.json")
    stored = pq.read_table(line_of(path, home).home.evaluation("base", None) / "next.parquet")
    assert answers["columns"] == stored.column_names
    assert [row[0] for row in answers["data"]] == stored["question_id"].to_pylist()
    tuned = client.search_runs([experiment], "tags.asset = 'lora_checkpoints'", max_results=1)[0]
    for name in ("loss", "learning_rate", "grad_norm", "training.memory_bytes"):
        history = client.get_metric_history(tuned.info.run_id, name)
        steps = int(tuned.data.metrics["stage.count.steps"])
        assert [point.step for point in history] == list(range(1, steps + 1)), name
    trained = shown("lora_checkpoints", "trained_tokens.json")
    assert trained["columns"] == ["record_id", "prompt", "trained", "trained_tokens"]
    assert len(trained["data"]) == 5


def test_dagster_knows_what_was_made_and_its_checks_passed(world):
    _, home, _ = world
    import dagster as dg

    from selectit_dagster.orchestration.instance import open_instance

    with open_instance(home / "dagster") as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", "ranking"]))
        metadata = event.asset_materialization.metadata
        assert metadata["dagster/row_count"].value == 24
        assert metadata["mlflow_run"].value.startswith("http://127.0.0.1")
        partitions = instance.get_materialized_partitions(dg.AssetKey(["tiny", "lora_checkpoints"]))
        assert partitions == {"selectit_seed-1", "random-1_seed-1"}
        runs = instance.get_runs()
        assert all("mlflow/url" in run.tags for run in runs)


def test_the_page_of_what_was_chosen_leads_on_in_one_click(world):
    """Its plots are short enough to stand there; links open the explorer and the launchpad."""
    path, home, _ = world
    import dagster as dg
    from mlflow import MlflowClient

    from selectit_dagster.orchestration.instance import open_instance

    with open_instance(home / "dagster") as instance:
        event = instance.get_latest_materialization_event(
            dg.AssetKey(["tiny", "production_dataset"])
        )
    shown = event.asset_materialization.metadata
    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    plot = shown["plot_selected_and_rejected"].value
    assert len(plot) < 1000
    stored = parse_qs(urlsplit(plot.rpartition("(")[2].rstrip(")")).query)
    names = [file.path for file in client.list_artifacts(stored["run_uuid"][0], "plots")]
    assert stored["path"][0] in names
    explorer = shown["explorer"].value.split("/runs/")[1].partition("/artifacts/")
    assert "explorer.html" in [file.path for file in client.list_artifacts(explorer[0])]
    assert explorer[2].startswith("explorer.html?")
    tries = shown["try_another"].value
    assert len(tries) < 1000
    links = re.findall(r"\[([^]]+)\]\((/locations/__repository__@selectit/\S+)\)", tries)
    share = line_of(path, home).experiment.selection.share
    assert [words for words, _ in links] == [
        f"share {share / 2}",
        f"share {2 * share}",
        "another share",
    ]
    place = urlsplit(links[0][1])
    assert place.path.endswith("/jobs/tiny_write_subsets/playground/setup")
    asked = parse_qs(place.query)
    assert json.loads(asked["config"][0]) == {
        "ops": {"tiny__selected_dataset": {"config": {"share": share / 2}}}
    }
    assert (asked["tags[0][key]"], asked["tags[0][value]"]) == (
        ["dagster/partition"],
        ["selectit"],
    )


def test_a_changed_alpha_ranks_again_but_scores_nothing(world):
    path, home, _ = world
    changed = path.with_name("changed.yaml")
    changed.write_text(
        path.read_text(encoding="utf-8").replace("num_prompts: 2", "num_prompts: 2, alpha: 0.9"),
        encoding="utf-8",
    )
    answer = selectit("run", changed, "--home", home, "--upto", "ranking", "--json")
    assert json.loads(answer.stdout)["materialised"] == ["ranking"]
    answer = selectit("run", path, "--home", home, "--json")  # and back again
    assert answer.returncode == 0
    assert not any("scores" in name for name in json.loads(answer.stdout)["materialised"])


def test_rank_and_explain_read_the_stored_scores(world):
    path, home, _ = world
    answer = selectit("rank", path, "--home", home, "--alpha", "0.5", "-k", "1", "--json")
    assert json.loads(answer.stdout)["selected"] == 6
    import pyarrow.parquet as pq

    ranking = pq.read_table(line_of(path, home).home.ranking / "ranking.parquet").to_pylist()
    answer = selectit("explain", ranking[0]["record_id"], path, "--home", home)
    assert "rank 1 of 24" in answer.stdout


def test_every_other_command_answers(world, tmp_path):
    path, home, _ = world
    checkpoint = line_of(path, home).home.checkpoint("selectit", 1)
    calls = {
        "doctor": (["doctor", path, "--home", home], "rating_token_ids"),
        "sensitivity": (["sensitivity", path, "--home", home], "rating prompts"),
        "report": (["report", path, "--home", home], "report.html"),
        "merge": (["merge", checkpoint, "-o", tmp_path / "merged"], "parameters"),
        "chat": (["chat", checkpoint, "-p", "Name a number.", "--max-new-tokens", "3"], ""),
    }
    for name, (arguments, expected) in calls.items():
        answer = selectit(*arguments)
        assert answer.returncode == 0, (name, answer.stderr)
        assert expected in answer.stdout, name
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path, tiny_model_folder, second_tiny_model_folder
):
    path = write_world(tmp_path, [tiny_model_folder, second_tiny_model_folder])
    code = "from selectit_dagster.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(path), "--home", str(tmp_path / "home")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    scores = tmp_path / "home" / "experiments" / "tiny" / "scores" / "one" / "manifest.json"
    deadline = time.monotonic() + 200
    while not scores.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "goes on" in text or "go on where it stopped" in text
    assert "Traceback" not in text.split("interrupted")[-1]
    answer = selectit("run", path, "--home", tmp_path / "home", "--upto", "ranking", "--json")
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert "raw_dataset" not in facts["materialised"]
    assert "ranking" in facts["materialised"]


def test_select_writes_the_best_records_as_they_were_read(
    tmp_path, tiny_model_folder, second_tiny_model_folder
):
    write_world(tmp_path, [tiny_model_folder, second_tiny_model_folder])
    output = tmp_path / "best.json"
    answer = selectit(
        "select", "-i", tmp_path / "data.json", "-m", tiny_model_folder,
        "-m", second_tiny_model_folder, "-o", output, "-k", "2", "--share", "0.5",
        "--max-reject-share", "0.1", "--scores", tmp_path / "scores", "--json",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout.splitlines()[-1])
    chosen = json.loads(output.read_text(encoding="utf-8"))
    source = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert len(chosen) == facts["counts"]["selected"] == 12
    assert all(record in source for record in chosen)
    assert facts["counts"]["rejected"] == 1
    assert list((tmp_path / "scores" / "scores").iterdir())


@pytest.mark.parametrize(
    ("records", "arguments", "said"),
    [
        (None, [], ["data.json does not exist", "hint: check --input"]),
        (
            [{"instruction": "x", "output": "y"}, {"instruction": "x"}],
            [],
            ["that --max-reject-share allows", "raise --max-reject-share"],
        ),
        (
            [{"front": "x", "back": "y"}],
            [],
            ["columns found: back, front", "hint: name the columns: --columns instruction"],
        ),
        ([], ["--share", "3"], ["--share: found 3.0", "`selectit select --help`"]),
    ],
)
def test_select_speaks_of_its_own_options_not_of_keys_that_its_user_does_not_have(
    records, arguments, said, tmp_path, tiny_model_folder
):
    if records is not None:
        (tmp_path / "data.json").write_text(json.dumps(records), encoding="utf-8")
    answer = selectit(
        "select", "-i", tmp_path / "data.json", "-m", tiny_model_folder,
        "-o", tmp_path / "o.json", *arguments,
    )  # fmt: skip
    assert answer.returncode == 2, answer.stderr
    for words in said:
        assert words in answer.stderr
    assert "dataset.path" not in answer.stderr
    assert "dataset.max_reject_share" not in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.yaml"], "absent.yaml"),
        (["run", "{world}", "--upto", "nonsense"], "the assets are"),
        (["run", "{misspelt}"], "did you mean alpha?"),
        (["run", "{empty}"], "none.json holds no records"),
        (["run", "{nodata}"], "gone.json"),
        (["run", "{nomodel}"], "no-model"),
        (["run", "{world}", "--home", "/proc/nowhere"], "cannot be written"),
        (["select", "-i", "gone.json", "-m", "./m", "-o", "{out}"], "gone.json"),
        (["select", "-i", "x", "-m", "./m", "-o", "{out}", "--alpha", "many"], "alpha"),
        (
            ["select", "-i", "x", "-m", "./m", "-o", "{out}", "--theta", "1", "--theta", "2"],
            "2 --theta for 1 --model\n  hint: give --theta once per model",
        ),
        (["nonsense"], "No such command"),
        (["chat", "{empty}"], "not a folder"),
        (["explain", "nobody", "{world}", "--home", "{fresh}"], "ranking"),
    ],
)
def test_wrong_input_is_one_clear_message_and_exit_2(
    arguments, message, tmp_path, tiny_model_folder, second_tiny_model_folder
):
    world = write_world(tmp_path, [tiny_model_folder, second_tiny_model_folder])
    text = world.read_text(encoding="utf-8")
    (tmp_path / "none.json").write_text("[]", encoding="utf-8")
    made = {
        "world": text,
        "misspelt": text.replace("num_prompts: 2", "alfa: 2"),
        "empty": text.replace("data.json", "none.json"),
        "nodata": text.replace("data.json", "gone.json"),
        "nomodel": text.replace(str(tiny_model_folder), "./no-model"),
    }
    names = {"out": tmp_path / "out.json", "fresh": tmp_path / "fresh"}
    for name, content in made.items():
        names[name] = tmp_path / f"{name}.yaml"
        names[name].write_text(content, encoding="utf-8")
    filled = [part.format(**names) for part in arguments]
    if "run" in filled and "--home" not in filled:
        filled += ["--home", str(tmp_path / "home")]
    answer = selectit(*filled)
    assert answer.returncode == 2, answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
