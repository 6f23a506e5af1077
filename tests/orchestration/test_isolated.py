"""Stages that load a model, in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time

import psutil
import pytest

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.isolated import run_isolated
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.progress import Silent


@pytest.fixture
def pipeline(tmp_path, tiny_model_folder):
    rows = [{"id": f"r{i}", "instruction": f"Name {i}.", "output": f"It is {i}."} for i in range(9)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    path = tmp_path / "e.yaml"
    path.write_text(
        f"name: e\ndataset: {{path: data.jsonl}}\n"
        f"scoring_models: [{{name: one, path: {tiny_model_folder}}}]\n"
        "rating: {num_prompts: 1}\ntracking: {enabled: false}\n",
        encoding="utf-8",
    )
    home = Home(tmp_path / "home", "e")
    made = Pipeline(load_experiment(path), home, experiment_file=path)
    made.raw().run(Silent())
    made.curated().run(Silent())
    return made


class _Watch:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def update(self, done: int, total: int, **figures: float) -> None:
        self.seen.append(done)


def test_the_artefact_and_the_progress_come_from_another_process(pipeline):
    watch = _Watch()
    manifest = run_isolated(pipeline.scores("one"), pipeline, "run", watch)
    assert manifest == read_manifest(pipeline.home.scores("one"))
    assert manifest.counts["ok"] == 9
    assert watch.seen[-1] == 9
    assert multiprocessing.active_children() == []


def test_what_the_user_must_mend_arrives_with_its_remedy(pipeline):
    (pipeline.home.curated / "records.parquet").unlink()
    with pytest.raises(UserError) as caught:
        run_isolated(pipeline.scores("one"), pipeline, "run", Silent())
    assert caught.value.hint


def test_a_process_that_the_system_kills_is_named(pipeline):
    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match=r"uncertainty_scores/one ended with SIGKILL") as caught:
        run_isolated(pipeline.scores("one"), pipeline, "run", Silent())
    killer.join()
    assert "most often memory" in caught.value.hint
