"""Runs with a storage place: through Dagster, on several machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.launch.run import run_experiment

ROWS = (b'"journal-', b'"part-')
_CODE = "from selectit_dagster.cli.main import main; main()"


def write_world(folder: Path, models: list[Path], *, records: int = 24) -> Path:
    """Write a dataset, a benchmark and an experiment with two arms and short tuning."""
    rows = [
        {"instruction": f"Name the number after {i}.", "input": "", "output": f"It is {i + 1}."}
        for i in range(records)
    ]
    (folder / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    questions = [
        {"id": f"q{i}", "family": "n", "instruction": f"After {i}?", "answer": str(i + 1)}
        for i in range(8)
    ]
    (folder / "bench.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
name: tiny
dataset: {{path: data.json}}
scoring_models: [{{name: one, path: {models[0]}}}, {{name: two, path: {models[1]}}}]
rating: {{num_prompts: 2, max_batch_tokens: 512}}
selection: {{share: 0.25, arms: [{{kind: selectit}}, {{kind: random, seeds: [1]}}]}}
tuning:
  base_model: {{path: {models[0]}}}
  epochs: 1
  batch_size: 4
  micro_batch_size: 4
  max_length: 400
  rank: 4
benchmarks: [{{name: next, task: exact-match, path: bench.jsonl, max_new_tokens: 4}}]
comparison: {{resamples: 200}}
tracking: {{enabled: false}}
storage: {{unfinished_seconds: 0.2}}
""",
        encoding="utf-8",
    )
    return path


def selectit(*arguments: object, **options):
    return subprocess.run(
        [sys.executable, "-c", _CODE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


@pytest.fixture
def world(tmp_path, tiny_model_folder, second_tiny_model_folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return write_world(tmp_path, [tiny_model_folder, second_tiny_model_folder])


def test_a_second_home_fetches_and_dagster_shows_the_stored_address(world, tmp_path, monkeypatch):
    import dagster as dg

    from selectit_dagster.orchestration.instance import open_instance

    monkeypatch.setenv("SELECTIT_STORAGE", f"file://{tmp_path}/place")
    here = run_experiment(world, tmp_path / "here", upto="curated_dataset")
    there = run_experiment(world, tmp_path / "there", upto="curated_dataset")
    again = run_experiment(world, tmp_path / "there", upto="curated_dataset")
    assert (here.fetched, len(here.materialised)) == ([], 3)
    assert there.fetched == here.materialised
    assert again.materialised == []
    for stage in ("raw", "questions", "curated"):
        manifests = [
            tmp_path / home / "experiments" / "tiny" / stage / "manifest.json"
            for home in ("here", "there")
        ]
        assert manifests[0].read_bytes() == manifests[1].read_bytes()
    with open_instance(tmp_path / "there" / "dagster") as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", "curated_dataset"]))
        shown = event.asset_materialization.metadata
    assert shown["dagster/uri"].value == f"file://{tmp_path}/place/experiments/tiny/curated"
    assert shown["local_copy"].value == str(there.pipeline.home.curated)


def test_a_place_that_cannot_be_written_ends_the_run_before_it_starts(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SELECTIT_STORAGE", f"file://{tmp_path}/file/place")
    with pytest.raises(UserError, match="cannot"):
        run_experiment(world, tmp_path / "home", upto="raw_dataset")
    assert not (tmp_path / "home" / "experiments" / "tiny" / "raw").exists()


def test_wrong_credentials_are_one_message_and_exit_code_2(
    world, tmp_path, s3_server, s3_environment, s3_place
):
    s3_environment(s3_server, ("nobody", "some-secret"))
    environment = {**os.environ, "SELECTIT_STORAGE": s3_place}
    answer = selectit("run", world, "--home", tmp_path / "home", env=environment)
    assert answer.returncode == 2
    assert "access is refused" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "some-secret" not in answer.stderr


@pytest.mark.slow
def test_the_whole_chain_on_s3_and_a_fresh_home_that_makes_nothing(
    world, tmp_path, s3_server, s3_environment, s3_place
):
    s3_environment(s3_server)
    environment = {**os.environ, "SELECTIT_STORAGE": s3_place}
    first = selectit("run", world, "--home", tmp_path / "a", "--json", env=environment)
    assert first.returncode == 0, first.stderr
    second = selectit("run", world, "--home", tmp_path / "b", "--json", env=environment)
    assert second.returncode == 0, second.stderr
    made, facts = json.loads(first.stdout), json.loads(second.stdout)
    assert made["fetched"] == []
    assert facts["fetched"] == made["materialised"]
    third = selectit("run", world, "--home", tmp_path / "b", "--json", env=environment)
    assert json.loads(third.stdout)["materialised"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unfinished", "sent", "asset"),
    [
        ("scores/one/unfinished/files.json", ROWS, "ranking"),
        ("seed-1/unfinished/files.json", (b"complete.json",), "lora_checkpoints"),
    ],
)
def test_killed_in_the_middle_another_machine_goes_on(
    unfinished, sent, asset, tmp_path, tiny_model_folder, second_tiny_model_folder, s3_server,
    s3_environment, s3_place,
):  # fmt: skip
    import shutil

    from selectit_dagster.artefacts.remote_files import Remote

    path = write_world(tmp_path, [tiny_model_folder, second_tiny_model_folder], records=2500)
    text = path.read_text(encoding="utf-8").replace("rank: 4", "rank: 4\n  checkpoint_every: 2")
    path.write_text(text, encoding="utf-8")
    s3_environment(s3_server)
    environment = {**os.environ, "SELECTIT_STORAGE": s3_place, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CODE, "run", str(path), "--upto", asset, "--home"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "lost")], env=environment, stderr=subprocess.DEVNULL
    )
    place, deadline = Remote(s3_place), time.monotonic() + 240
    # the list begins with the plan alone, which nothing can be resumed from
    while not any(
        any(name in (place.read(key) or b"") for name in sent)
        for key in place.sizes("experiments")
        if key.endswith(unfinished)
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(tmp_path / "lost")
    answer = selectit("run", path, "--upto", asset, "--home", tmp_path / "new", env=environment)
    assert answer.returncode == 0, answer.stderr
    folder = tmp_path / "new" / "experiments" / "tiny"
    if asset == "ranking":
        counts = read_manifest(folder / "scores" / "one").counts
        assert counts["resumed"] + counts["reused"] > 0
        assert counts["ok"] == counts["records"]
    else:
        resumed = [
            read_manifest(path).details["resumed_at_step"]
            for path in (folder / "checkpoints").glob("*/seed-1")
        ]
        assert max(resumed) > 0
