"""A stranger's arm: the documented example, installed as a package of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from selectit_dagster.experiment import SelectionSection
from selectit_dagster.selection.arms.arm import arms
from tests.installed_example import blocks, install

from .stored import write_records

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["one two three four five", "one one one one one", "a b", "x y x y x z"]


@pytest.fixture
def installed(tmp_path) -> Path:
    return install("arms.md", "rich_words", tmp_path)


def test_the_documented_example_works_once_it_is_installed(installed, tmp_path):
    assert len(blocks("arms.md", "python")[0].splitlines()) <= 30
    write_records(tmp_path / "curated", ["a", "b", "c", "d"], responses=TEXTS)
    code = """
import sys; from pathlib import Path
from selectit_dagster.experiment import SelectionSection
from selectit_dagster.orchestration.stages.stage import subsets
from selectit_dagster.selection.subset import SelectionRequest, select
arms = [{"name": "rich", "kind": "rich-words", "least": 3, "weights": {"rule": "softmax"}}]
section = SelectionSection.model_validate({"arms": arms})
arm, _ = subsets(section.arms)["rich"]
folder = Path(sys.argv[1])
select(SelectionRequest("rich", arm.kind, None, folder / "curated", None, (), "count", 3, None,
       parameters=arm.model_dump(exclude={"kind"})), folder / "out")
"""
    paths = [str(installed), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    rows = pq.read_table(tmp_path / "out" / "dataset.parquet").to_pylist()
    assert [(row["record_id"], row["score"]) for row in rows] == [
        ("a", 1.0),
        ("d", 0.5),
        ("b", 0.2),
    ]
    assert rows[0]["weight"] > rows[2]["weight"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["details"]["describe"] == "the responses with the richest vocabulary"


def test_the_page_names_every_kind_and_its_experiment_is_valid():
    page = (ROOT / "docs" / "arms.md").read_text(encoding="utf-8")
    lacking = [kind for kind in arms() if f"`{kind}`" not in page]
    assert not lacking
    section = SelectionSection.model_validate(
        yaml.safe_load(blocks("arms.md", "yaml")[0])["selection"]
    )
    assert len(section.arms) == 8
