"""A home that version 0.1.0 filled is read as it is: nothing of it is made again."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from selectit_dagster.artefacts.manifest import read_manifest, verify
from selectit_dagster.launch.preflight import open_pipeline
from selectit_dagster.progress import Silent

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "tests" / "fixtures" / "home-0.1.0.tar.gz"
MODELS = ROOT / "selectit_dagster" / "miniature" / "models"
# what holds hours of work: it must be current, not only readable
EXPENSIVE = {"raw_dataset", "benchmark_questions", "curated_dataset", "uncertainty_scores/small"}
EXPENSIVE |= {"uncertainty_scores/large", "ranking", "lora_checkpoints", "benchmark_evaluations"}
EXPENSIVE |= {"selected_dataset", "untuned_evaluation"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(HOME) as archive:
        archive.extractall(folder, filter="data")
    experiment = folder / "experiment.yaml"
    text = experiment.read_text(encoding="utf-8")
    experiment.write_text(
        text.replace("/srv/selectit/selectit_dagster/miniature/models", str(MODELS)),
        encoding="utf-8",
    )
    return open_pipeline(experiment, folder / "home")


def test_every_artefact_of_it_is_whole(pipeline):
    folders = [path.parent for path in pipeline.home.folder.rglob("manifest.json")]
    assert len(folders) == 16
    for folder in folders:
        verify(folder)


def test_what_took_long_is_current_and_is_not_made_again(pipeline):
    stages = [stage for phase in pipeline.phases() for stage in phase]
    # read and curated again in a second, by the rules of today; nothing follows from it
    for stage in stages:
        if stage.asset in {"raw_dataset", "curated_dataset"}:
            before = read_manifest(stage.folder)
            assert stage.run(Silent()).digest == before.digest
    expensive = [stage for stage in stages if stage.asset in EXPENSIVE]
    assert {stage.asset for stage in expensive} == EXPENSIVE
    assert [stage.title for stage in expensive if not stage.is_current()] == []
