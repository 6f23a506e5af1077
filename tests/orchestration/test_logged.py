"""What MLflow's runs and Dagster's pages are given of an artefact."""

from __future__ import annotations

import numpy as np
from small_home import make_pipeline

from selectit_dagster.artefacts.manifest import Manifest, write_manifest
from selectit_dagster.comparison.analysis import champion
from selectit_dagster.comparison.score_matrices import BenchmarkScores, Run
from selectit_dagster.comparison.statistics import Questions
from selectit_dagster.orchestration.mlflow_logging import champion_model
from selectit_dagster.orchestration.previews import pictures
from selectit_dagster.orchestration.tracking import flatten


def test_of_two_random_draws_with_one_training_seed_the_better_is_the_champion(tmp_path):
    """Their arm and seed are the same: only the folder tells which checkpoint it was."""
    pipeline = make_pipeline(tmp_path, tuning=False)
    runs = [Run("random", 1, pipeline.home.evaluation(arm, 1)) for arm in ("random-1", "random-4")]
    scores = {"random": np.array([[0.0, 1.0], [1.0, 1.0]])}
    best = champion([BenchmarkScores("b", "accuracy", Questions.mean(2), scores, 1)], runs)
    assert best is not None
    assert champion_model(best) == "random-4-seed-1"


def test_no_parameter_is_longer_than_mlflow_takes():
    assert max(map(len, flatten({"text": "x" * 9000, "list": ["x" * 9000]}).values())) <= 6000


def test_another_ranking_draws_the_selections_pictures_anew(tmp_path, monkeypatch):
    pipeline = make_pipeline(tmp_path, tuning=False)
    stage = pipeline.selected("selectit")
    drawn: list[str] = []

    def rank(content: str) -> Manifest:
        pipeline.home.ranking.mkdir(parents=True, exist_ok=True)
        (pipeline.home.ranking / "a.txt").write_text(content)
        return write_manifest(
            pipeline.home.ranking, kind="ranking", fingerprint={}, files=["a.txt"], counts={}
        )

    def histogram(ranking, folder) -> bytes:
        drawn.append((ranking / "a.txt").read_text())
        return b"png"

    monkeypatch.setattr("selectit_dagster.selection.selection_plots.score_histogram", histogram)
    monkeypatch.setattr(
        "selectit_dagster.selection.selection_plots.length_against_score", lambda *places: b"png"
    )
    stage.folder.mkdir(parents=True)
    selection = write_manifest(stage.folder, kind="x", fingerprint={}, files=[], counts={})
    for content in ("first", "first", "second"):
        rank(content)
        pictures(stage, selection)
    assert drawn == ["first", "second"]
