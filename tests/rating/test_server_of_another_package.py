"""A stranger's kind of server: the documented example, installed as a package of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scoring_world import request_for, some_records, write_records

from selectit_dagster.rating import scoring
from selectit_dagster.rating.score_store import OK, read_scores
from selectit_dagster.rating.scoring import score
from tests.inference_server import FakeServer, all_log_probabilities
from tests.installed_example import blocks, install

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys; from dataclasses import replace; from pathlib import Path
from scoring_world import request_for
from selectit_dagster.experiment import ServerSection
from selectit_dagster.rating import scoring
scoring.draw = lambda *_: None
records, model, url, out = sys.argv[1:]
request = request_for(Path(records), Path(model), num_prompts=2)
served = request.model.model_copy(update={"server": ServerSection(kind="house", url=url)})
scoring.score(replace(request, model=served), Path(out))
"""


class HouseServer(FakeServer):
    """What the guide's server answers."""

    def answer(self, path: str, body: dict | None) -> tuple[int, object]:
        if path == "/v1/models":
            facts = {"version": "3", "longest": self.context, "dtype": "float32"}
            return 200, {"data": [{"id": self.name, **facts}]}
        if path == "/score" and body is not None:
            logs = [all_log_probabilities(self.folder, row) for row in body["rows"]]
            return 200, {"scores": [row[body["tokens"]].tolist() for row in logs]}
        return 404, {}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return install("raters.md", "house_server", tmp_path)


def test_the_documented_kind_rates_once_it_is_installed(
    installed: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(blocks("raters.md", "python")[0].splitlines()) <= 38
    records = write_records(tmp_path / "records", some_records(6))
    paths = [str(installed), str(ROOT), str(ROOT / "tests" / "rating")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with HouseServer(tiny_model_folder) as there:
        arguments = [str(records), str(tiny_model_folder), there.url, str(tmp_path / "there")]
        subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, env=environment)
    monkeypatch.setattr(scoring, "draw", lambda *_: None)
    score(request_for(records, tiny_model_folder, num_prompts=2), tmp_path / "here")
    found, local = (read_scores(tmp_path / name, 2) for name in ("there", "here"))
    assert (found.status == OK).all()
    np.testing.assert_allclose(found.probabilities, local.probabilities, atol=1e-5)
