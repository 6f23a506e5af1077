"""How much the selected set depends on settings and on chance; the plots."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.selection import resampling
from selectit_dagster.selection import sensitivity as module
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.selection_plots import length_against_score, score_histogram
from selectit_dagster.selection.sensitivity import (
    SensitivityRequest,
    sensitivity,
)
from selectit_dagster.selection.subset import select

from .stored import distributions, ranked_rows, selection, world

ROWS = 120


def noise(tmp_path, rows=ROWS):
    """Ratings that the prompts do not agree about at all."""
    p = distributions(np.random.default_rng(0), 2, rows, 5, 5)
    return world(tmp_path, [f"r{i:03d}" for i in range(rows)], p)


def agreement(tmp_path, rows=ROWS):
    """Ratings in which each record has a quality of its own."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(1, rows, 1, 1)) * np.arange(5) * 1.5
    logits = quality + 0.3 * rng.normal(size=(2, rows, 5, 5))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return world(tmp_path, [f"r{i:03d}" for i in range(rows)], p.astype(np.float32))


def run(request, tmp_path, **changes):
    asked = SensitivityRequest(request, "share", 0.2, resamples=40)
    return sensitivity(replace(asked, **changes), tmp_path / "sensitivity").details


def test_noise_is_called_no_more_stable_than_chance(tmp_path):
    found = run(noise(tmp_path), tmp_path)
    assert found["stability"]["more_stable_than_chance"] is False
    assert "no more stable than chance" in found["sentence"]


def test_agreement_between_prompts_is_more_stable_than_chance(tmp_path):
    found = run(agreement(tmp_path), tmp_path)
    assert found["stability"]["more_stable_than_chance"] is True
    assert found["stability"]["overlap"] > 0.8
    assert "chance" not in found["sentence"]


def test_overlaps_are_those_of_the_rankings_themselves(tmp_path):
    request = agreement(tmp_path)
    found = run(request, tmp_path)
    others = {
        ("alpha", "1"): {"alpha": 1.0},
        ("K", "2"): {"num_prompts": 2},
        ("variant", "released-code"): {"variant": "released-code"},
        ("ablation", "model-r"): {"ablation": "model-r"},
        ("only model", "small"): {"scores": request.scores[:1]},
    }
    rank(request, tmp_path / "base")
    base = {row["record_id"] for row in ranked_rows(tmp_path / "base")[:24]}
    table = {(row["factor"], row["value"]): row for row in found["settings"]}
    for key, change in others.items():
        rank(replace(request, **change), tmp_path / "other")
        other = {row["record_id"] for row in ranked_rows(tmp_path / "other")[:24]}
        # the released code breaks ties by position, the analysis by record id
        assert table[key]["overlap"] == pytest.approx(len(base & other) / 24, abs=0.05)
    assert found["chance_overlap"] == pytest.approx(0.2)
    assert len(found["labels"]) == len(found["pairwise"]) == len(found["settings"]) + 1


def test_one_prompt_cannot_be_resampled_and_that_is_said(tmp_path):
    found = run(replace(noise(tmp_path), num_prompts=1), tmp_path)
    assert found["stability"] is None
    assert "single rating prompt" in found["sentence"]


def test_large_data_are_sampled_without_regard_to_order_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 40)
    monkeypatch.setattr(resampling, "SAMPLE", 40)
    found = run(agreement(tmp_path), tmp_path, size_rule="count", size=24)
    assert found["sampled"] is True
    assert 20 <= found["records"] <= 40
    assert found["selected"] == found["records"] // 5
    assert "(measured on a sample)" in found["sentence"]


def test_without_a_record_that_all_models_rated_nothing_can_be_varied(tmp_path):
    status = {"small": {(0, 0): ("failed", "x")}, "large": {(1, 4): ("too_long", "y")}}
    p = distributions(np.random.default_rng(0), 2, 2, 5, 5)
    request = world(tmp_path, ["a", "b"], p, status=status)
    with pytest.raises(UserError, match="no record was rated by all models") as refusal:
        run(request, tmp_path)
    assert "counts of too_long and failed records" in refusal.value.hint


def test_it_is_computed_once(tmp_path):
    request = SensitivityRequest(noise(tmp_path, 20), "share", 0.2, resamples=10)
    first = sensitivity(request, tmp_path / "out")
    assert sensitivity(request, tmp_path / "out") == first
    assert require_manifest(tmp_path / "out", made_by="sensitivity").details == first.details


def test_plots_are_small_pictures(tmp_path):
    from matplotlib.image import imread

    request = agreement(tmp_path)
    rank(request, tmp_path / "ranking")
    select(selection(request, tmp_path / "ranking", size=0.2), tmp_path / "selected")
    run(request, tmp_path)
    pictures = [
        score_histogram(tmp_path / "ranking", tmp_path / "selected"),
        length_against_score(request.records, tmp_path / "ranking", tmp_path / "selected"),
        (tmp_path / "sensitivity" / "sensitivity.png").read_bytes(),
    ]
    for png in pictures:
        assert len(png) < 70_000
        assert imread(io.BytesIO(png)).ndim == 3
