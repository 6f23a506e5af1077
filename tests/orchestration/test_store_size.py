"""Both databases stay small, whatever the number of records."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from small_home import make_pipeline

from selectit_dagster.artefacts.files import write_text
from selectit_dagster.artefacts.manifest import write_manifest
from selectit_dagster.orchestration import stage_asset
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import spread_lines
from selectit_dagster.orchestration.instance import open_instance
from selectit_dagster.orchestration.resources import make_tracker
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Reporter

WEEK = 7 * 24 * 3600
MOST = 5_000_000


def databases(home: Path) -> int:
    files = [p for p in home.rglob("*") if p.name.endswith((".db", ".db-wal"))]
    assert len(files) >= 2
    return sum(path.stat().st_size for path in files)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(stage_asset, "Reporter", partial(Reporter, clock=lambda: now[0]))
    return now


@pytest.mark.slow
def test_a_run_that_scores_for_three_weeks_leaves_less_than_five_megabytes(
    tmp_path: Path, clock: list[float]
) -> None:
    pipeline = make_pipeline(tmp_path, tuning=False)
    tracker = make_tracker(pipeline)
    (tmp_path / "stage").mkdir()
    total = 29_000_000

    def score(progress: Reporter) -> object:
        for second in range(0, WEEK, 5):
            clock[0] = float(second)
            progress.update(
                second * total // WEEK, total, records_per_second=9.5, tokens_per_second=1e4,
                memory_gb=12.5,
            )  # fmt: skip
        return write_manifest(
            tmp_path / "stage", kind="x", fingerprint={}, files=[], counts={"records": total}
        )

    def asset(name: str) -> dg.AssetsDefinition:
        stage = Stage(name, tmp_path / "stage", dict, score, "prompts")

        class Scored(stage_asset.StageAsset):
            def stage(self, asked):
                return stage

        scored = Scored(pipeline, Access.of(pipeline.experiment))

        @dg.asset(name=name)
        def made(context) -> dg.MaterializeResult:
            clock[0] = 0.0
            return scored.run(context, pipeline, tracker)

        return made

    with open_instance(tmp_path / "home" / "dagster") as instance:
        assets = [asset(f"scores_{number}") for number in range(3)]
        job = dg.Definitions(assets=assets).resolve_implicit_global_asset_job_def()
        tracker.experiment_id  # noqa: B018 - opens the empty store
        before = databases(tmp_path)
        result = job.execute_in_process(instance=instance)
        grown = databases(tmp_path) - before
        lines = [e for e in instance.all_logs(result.run_id) if "prompts" in e.user_message]
    assert 3 * 200 < len(lines) < 3 * 350
    assert grown < MOST


def test_a_long_training_log_is_shown_evenly_and_whole_in_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_text(path, "".join(json.dumps({"step": n}) + "\n" for n in range(1, 27_001)))
    shown = [row["step"] for row in spread_lines(path, 500)]
    assert len(shown) == 500
    assert (shown[0], shown[-1]) == (1, 27_000)
    gaps = {b - a for a, b in pairwise(shown)}
    assert gaps <= {54, 55}
    assert len(spread_lines(path, 50_000)) == 27_000
    assert spread_lines(tmp_path / "absent", 5) == []
