"""Pictures and doctor's facts, on real small models."""

from __future__ import annotations

from pathlib import Path

import pytest
from scoring_world import HashedBackend, request_for, some_records, write_records

from selectit_dagster.experiment import RatingSection, ScoringModel
from selectit_dagster.rating import doctor, rating_plots
from selectit_dagster.rating.scoring import score

PNG = b"\x89PNG\r\n\x1a\n"


def test_pictures_are_small_png_files(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    records = write_records(tmp_path / "records", some_records(40))
    request = request_for(records, tiny_model_folder, num_prompts=3)
    out = tmp_path / "scores"
    score(request, out, backend=HashedBackend())
    drawn = [
        rating_plots.score_overview(out, 3),
        rating_plots.prompt_disagreement(out, 3),
        rating_plots.model_disagreement([("one", out), ("two", out)], 3),
        (out / "scores.png").read_bytes(),
        (out / "prompts.png").read_bytes(),
    ]
    for png in drawn:
        assert png.startswith(PNG)
        assert len(png) < 70_000


def test_doctor_tries_a_model_as_scoring_would(tiny_model_folder: Path) -> None:
    model = ScoringModel(name="tiny", path=str(tiny_model_folder), device="cpu")
    facts = doctor.model_facts(model, RatingSection(num_prompts=2))
    assert facts["ok"], facts["problems"]
    assert facts["context"] == 512
    assert len(facts["rating_token_ids"]) == 5
    assert 0 < facts["rating_mass"] < 1
    assert len(facts["mean_rating"]) == 3


def test_doctor_says_what_would_stop_a_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    missing = doctor.model_facts(
        ScoringModel(name="none", path=str(tmp_path), device="cpu"), RatingSection()
    )
    assert not missing["ok"]
    assert str(tmp_path) in missing["problems"][0]
    short = doctor.model_facts(
        ScoringModel(name="tiny", path=str(tiny_model_folder), device="cpu"),
        RatingSection(max_length=32),
    )
    assert "even a short record does not fit" in short["problems"][0]


def test_machine_facts_name_devices_and_versions(tmp_path: Path) -> None:
    facts = doctor.machine_facts(tmp_path / "not" / "there")
    assert facts["devices"][0] == {"device": "cpu", "dtype": "float32"}
    assert facts["memory_gb"] > 0
    assert {"python", "torch", "transformers"} <= set(facts["versions"])
