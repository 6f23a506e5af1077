"""What MLflow's runs and Dagster's pages are given of an artefact."""

from __future__ import annotations

import numpy as np
from small_home import make_pipeline

from selectit_dagster.assets.arm_comparison import champion_model, evaluation_of
from selectit_dagster.comparison.analysis import champion
from selectit_dagster.comparison.score_matrices import BenchmarkScores, Run
from selectit_dagster.comparison.statistics import Questions
from selectit_dagster.orchestration.tracking import flatten


def test_of_two_random_draws_with_one_training_seed_the_better_is_the_champion(tmp_path):
    """Their arm and seed are the same: only the folder tells which checkpoint it was."""
    pipeline = make_pipeline(tmp_path, tuning=False)
    runs = [Run("random", 1, pipeline.home.evaluation(arm, 1)) for arm in ("random-1", "random-4")]
    scores = {"random": np.array([[0.0, 1.0], [1.0, 1.0]])}
    best = champion([BenchmarkScores("b", "accuracy", Questions.mean(2), scores, 1)], runs)
    assert best is not None
    assert champion_model(best) == "random-4-seed-1"


def test_the_champions_evaluation_is_found_in_a_home_that_was_moved(tmp_path):
    before, after = (make_pipeline(tmp_path / name, tuning=True) for name in ("old", "new"))
    champion = {"evaluation": str(before.home.evaluation("random-1", 1))}
    found = evaluation_of(champion, after.comparison())
    assert found == after.home.evaluation("random-1", 1)


def test_no_parameter_is_longer_than_mlflow_takes():
    assert max(map(len, flatten({"text": "x" * 9000, "list": ["x" * 9000]}).values())) <= 6000
