"""Blocking checks: each is seen to fail through Dagster, and nothing after it starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_home import fill, make_pipeline

from selectit_dagster.artefacts.manifest import MANIFEST, Manifest, write_manifest
from selectit_dagster.definitions import build_defs
from selectit_dagster.orchestration import stage_asset


def rewrite(path: Path, change) -> None:
    """Change a stored table, as a fault of a disk or of an engine would."""
    pq.write_table(change(pq.read_table(path)), path)


def without_row(name: str, column: str = "record_id"):
    return lambda t: t.filter(pa.array([v != name for v in t[column].to_pylist()]))


def doubled(name: str, column: str = "record_id"):
    return lambda t: pa.concat_tables(
        [t, t.filter(pa.array([v == name for v in t[column].to_pylist()]))]
    )


def with_value(name: str, column: str, value, key: str = "record_id"):
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for row in rows:
            if row[key] == name:
                row[column] = value
        return pa.Table.from_pylist(rows, schema=table.schema)

    return change


def vouch(folder: Path, details: dict | None = None) -> Manifest:
    """Write the manifest anew, over the files as they are."""
    stored = json.loads((folder / MANIFEST).read_text())
    return write_manifest(
        folder,
        kind=stored["kind"],
        fingerprint=stored["fingerprint"],
        files=list(stored["files"]),
        counts=stored["counts"],
        details={**stored["details"], **(details or {})},
    )


def null_adapter(folder: Path, value: float) -> None:
    """Write a checkpoint's adapter all of whose updates have one value."""
    import torch
    from safetensors.torch import save_file

    (folder / "adapter").mkdir()
    name = "base_model.model.q_proj.lora_B.weight"
    save_file(
        {name: torch.full((2, 2), value)}, str(folder / "adapter" / "adapter_model.safetensors")
    )
    (folder / "trained_tokens.json").write_text("[]", encoding="utf-8")
    base = {"path": "./little"}
    details = {"method": "lora", "base_model": base, "template": "alpaca", "custom_template": None}
    write_manifest(folder, kind="checkpoint", fingerprint={}, files=[], details=details)


RATING = [0.2, 0.2, 0.2, 0.2, float("nan")]
# asset, its artefact's folder, the check, the damage, what the message must say, what must wait
CASES = {
    "a record of the source is there twice": (
        "raw_dataset", "raw", "balance",
        lambda f: rewrite(f / "records.parquet", doubled("r007")), "r007", "curated_dataset",
    ),
    "a curated record is missing": (
        "curated_dataset", "curated", "balance",
        lambda f: rewrite(f / "records.parquet", without_row("r007")), "r007",
        "uncertainty_scores/little",
    ),
    "a record has no scores": (
        "uncertainty_scores/little", "scores/little", "one_row_per_record_and_prompt",
        lambda f: rewrite(f / "part-000000.parquet", without_row("r007")), "r007", "ranking",
    ),
    "a distribution has a NaN": (
        "uncertainty_scores/little", "scores/little", "finite_distributions",
        lambda f: rewrite(f / "part-000000.parquet", with_value("r007", "probabilities", RATING)),
        "r007", "ranking",
    ),
    "a record is not in the ranking": (
        "ranking", "ranking", "every_record_accounted_for",
        lambda f: rewrite(f / "ranking.parquet", without_row("r007")), "r007", "sensitivity",
    ),
    "a ranked record has a NaN for a score": (
        "ranking", "ranking", "finite_scores",
        lambda f: rewrite(f / "ranking.parquet", with_value("r007", "score", float("nan"))),
        "r007", "sensitivity",
    ),
    "a selected record is there twice": (
        "selected_dataset", "selected/selectit", "subset_of_the_right_size",
        lambda f: rewrite(f / "dataset.parquet", doubled("nasty")), "nasty", "production_dataset",
    ),
    "an adapter has a NaN": (
        "lora_checkpoints", "checkpoints/selectit/seed-1", "loads_and_answers",
        lambda f: null_adapter(f, float("nan")), "lora_B", "benchmark_evaluations",
    ),
    "an adapter learnt nothing": (
        "lora_checkpoints", "checkpoints/selectit/seed-1", "loads_and_answers",
        lambda f: null_adapter(f, 0.0), "zero", "benchmark_evaluations",
    ),
    "an answer has a NaN for a score": (
        "benchmark_evaluations", "evaluations/selectit/seed-1", "every_question_scored",
        lambda f: rewrite(
            f / "sums.parquet", with_value("q7", "score", float("nan"), "question_id")
        ),
        "sums/q7", "arm_comparison",
    ),
    "a question is missing": (
        "benchmark_evaluations", "evaluations/selectit/seed-1", "every_question_scored",
        lambda f: rewrite(f / "sums.parquet", without_row("q7", "question_id")),
        "79 questions instead of 80", "arm_comparison",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished home whose evaluations say what they hold."""
    folder = tmp_path_factory.mktemp("checks")
    pipeline = fill(make_pipeline(folder, tuning=True))
    return folder, pipeline.home.folder.relative_to(folder)


@pytest.fixture
def damaged(whole, tmp_path, monkeypatch):
    """A copy of the home, and a run of assets in it whose engines have done their work."""
    folder, inside = whole
    shutil.copytree(folder, tmp_path / "copy")
    folder = tmp_path / "copy"
    for path in (folder / inside).glob("evaluations/**/sums.parquet"):
        table = pq.read_table(path)
        table = table.append_column("status", pa.array(["ok"] * table.num_rows))
        pq.write_table(table, path)
        vouch(path.parent, {"benchmarks": {"sums": {"questions": 80, "too_long": []}}})
    (folder / "home" / "dagster" / "workers").mkdir(parents=True)
    started: list[str] = []

    def engine(stage, reporter):
        started.append(stage.title)
        # what an engine got wrong stands in its manifest as if it were right
        return vouch(stage.folder)

    monkeypatch.setattr(stage_asset, "_make", engine)
    monkeypatch.setattr(stage_asset, "save_comparison", lambda *_: None)
    experiment = next(folder.glob("*.yaml"))
    text = experiment.read_text() + "tracking: {enabled: false}\n"
    experiment.write_text(text)
    definitions = build_defs(experiment_file=experiment, home=folder / "home", key_prefix="t")
    return folder / inside, started, definitions


def run(definitions: dg.Definitions, names: list[str], partition: str | None):
    keys = [dg.AssetKey(["t", *name.split("/")]) for name in names]
    repository = definitions.get_repository_def()
    with dg.DagsterInstance.ephemeral() as instance:
        job = repository.get_implicit_job_def_for_assets(keys)
        result = job.execute_in_process(
            instance=instance,
            partition_key=partition,
            asset_selection=keys,
            raise_on_error=False,
        )
        return result


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_artefact_fails_its_check_and_stops_the_run(damaged, case):
    home, started, definitions = damaged
    asset, folder, check, damage, message, downstream = CASES[case]
    damage(home / folder)
    partition = {"selected_dataset": "selectit"}.get(asset)
    if asset in {"lora_checkpoints", "benchmark_evaluations"}:
        partition = "selectit_seed-1"
    result = run(definitions, [asset, downstream], partition)
    assert not result.success
    assert [title.split(" [")[0] for title in started] == [asset]
    events = [e for e in result.all_events if e.event_type_value == "ASSET_CHECK_EVALUATION"]
    failed = {e.asset_check_evaluation_data.check_name: e for e in events}
    evaluation = failed[check].asset_check_evaluation_data
    assert not evaluation.passed
    assert message in evaluation.description
    assert evaluation.partition == partition
    # a later run does not take it for a valid artefact
    assert not (home / folder / MANIFEST).exists()


def test_whole_artefacts_pass(damaged):
    home, started, definitions = damaged
    assert run(definitions, ["raw_dataset", "curated_dataset", "ranking"], None).success
    assert run(definitions, ["benchmark_evaluations"], "selectit_seed-1").success
    assert len(started) == 4
    assert (home / "raw" / MANIFEST).exists()
    assert np.isfinite(pq.read_table(home / "ranking" / "ranking.parquet")["score"][0].as_py())
