"""A small finished home without any model.

Data, ranking, selection and comparison come from the real engines; rating distributions,
training figures and benchmark answers are made up.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import write_manifest
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.progress import Silent
from selectit_dagster.rating import rating_plots
from selectit_dagster.rating.score_store import OK, TOO_LONG, Ratings, write_part

NASTY = "<script>alert('x')</script> \u202egnp.exe\x07 | `code` **bold** & done"

_EXPERIMENT = """\
name: small
description: A small world for the tests of pages and reports.
dataset: {path: records.jsonl, license: apache-2.0}
curation: {decontamination: false}
scoring_models:
  - {name: little, path: ./little}
  - {name: big, path: ./big}
rating: {num_prompts: 3, num_ratings: 5}
selection: {share: 0.25, arms: [{kind: selectit}, {kind: random, seeds: [1, 2]}, {kind: full}]}
"""
_TUNING = """\
tuning: {base_model: {path: ./little}, seeds: [1, 2], epochs: 1}
benchmarks: [{name: sums, task: exact-match, path: ./sums.jsonl}]
comparison: {resamples: 200}
"""


def write_experiment(folder: Path, *, tuning: bool, records: int = 60) -> Path:
    """Write the dataset and an experiment file, and return the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"r{i:03d}", "instruction": f"Add {i} and {i + 1}.", "output": f"It is {2 * i + 1}."}
        for i in range(records - 3)
    ]
    rows.append({"id": "nasty", "instruction": NASTY, "output": NASTY})
    rows.append({"id": "twice", "instruction": "Add 1 and 2.", "output": "It is 3."})
    rows.append({"id": "no-output", "instruction": "Add 1 and 9."})
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "records.jsonl").write_text(lines + "\n", encoding="utf-8")
    path = folder / "small.yaml"
    path.write_text(_EXPERIMENT + (_TUNING if tuning else ""), encoding="utf-8")
    return path


def make_pipeline(folder: Path, *, tuning: bool) -> Pipeline:
    """Return the pipeline of a fresh home in ``folder``; nothing is made yet."""
    experiment = load_experiment(write_experiment(folder, tuning=tuning))
    return Pipeline(experiment, Home(folder / "home", experiment.name))


def fill(pipeline: Pipeline, *, upto: str = "arm_comparison") -> Pipeline:
    """Make every stage up to and including the asset ``upto``."""
    makers = [
        ("raw_dataset", lambda: pipeline.raw().run(Silent())),
        ("curated_dataset", lambda: pipeline.curated().run(Silent())),
        ("uncertainty_scores", lambda: [_scores(pipeline, n) for n in range(2)]),
        ("ranking", lambda: pipeline.ranking().run(Silent())),
        ("sensitivity", lambda: pipeline.sensitivity().run(Silent())),
        (
            "selected_dataset",
            lambda: [pipeline.selected(arm).run(Silent()) for arm in pipeline.arms],
        ),
        ("benchmark_evaluations", lambda: _tuned(pipeline)),
        ("arm_comparison", lambda: pipeline.units and pipeline.comparison().run(Silent())),
    ]
    for name, make in makers:
        make()
        if name == upto:
            break
    return pipeline


def _scores(pipeline: Pipeline, number: int) -> None:
    """Write made-up distributions; the nasty record is the best, one record is too long."""
    model = pipeline.experiment.scoring_models[number]
    folder = pipeline.home.scores(model.name)
    folder.mkdir(parents=True, exist_ok=True)
    ids = pq.read_table(pipeline.home.curated / "records.parquet")["record_id"].to_pylist()
    generator = np.random.default_rng(number)
    values = generator.dirichlet(np.ones(5), (len(ids), 3)).astype(np.float32)
    values[ids.index("nasty")] = [0, 0, 0, 0, 1]
    status = np.full((len(ids), 3), OK, np.uint8)
    reasons = {}
    if number:
        row = ids.index("r005")
        values[row], status[row] = np.nan, TOO_LONG
        reasons = {(row, prompt): "612 tokens, at most 512" for prompt in range(3)}
    mass = np.full((len(ids), 3), 0.9, np.float32)
    ratings = Ratings(ids, [f"{i:064x}" for i in range(len(ids))], values, mass, status, reasons)
    write_part(folder / "part-000000.parquet", ratings, "made up", ["a", "b", "c"])
    write_manifest(
        folder,
        kind="scores",
        fingerprint={"made": "up", "model": model.name},
        files=["part-000000.parquet"],
        counts={
            "records": len(ids),
            "prompts": 3,
            "ok": len(ids) - number,
            "too_long": number,
            "failed": 0,
            "scored": 3 * len(ids),
            "reused": 0,
        },
        details={
            "parameters": 1000 * (number + 1),
            "revision": None,
            "rating_mass": {"mean": 0.9, "p05": 0.4},
            "dtype": "float32",
            "device": "cpu",
            "prompts_per_second": 123.4,
            "tokens_per_second": 4567.0,
            "seconds": 12.5,
            "peak_memory_bytes": 345_000_000,
            "warnings": ["the rating tokens had little probability: <b>look</b>"] * number,
        },
    )
    (folder / "scores.png").write_bytes(rating_plots.score_overview(folder, 3))


def _tuned(pipeline: Pipeline) -> None:
    """Write made-up checkpoints and benchmark answers; SelectIT's are the best."""
    if pipeline.experiment.tuning is None:
        return
    for number, unit in enumerate(pipeline.units.values()):
        folder = pipeline.home.checkpoint(unit.arm, unit.seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n', encoding="utf-8")
        write_manifest(
            folder,
            kind="checkpoint",
            fingerprint={"unit": unit.key},
            files=["log.jsonl"],
            counts={"records": 14, "skipped": 1, "steps": 1, "tokens": 900, "trained_tokens": 300},
            details={"seconds": 3.5, "final_loss": 1.25, "device": "cpu"},
        )
        share = 0.9 if unit.arm == "selectit" else 0.5
        _answers(pipeline.home.evaluation(unit.arm, unit.seed), share, number)
    _answers(pipeline.home.evaluation("base", None), 0.2, 99)


def _answers(folder: Path, share: float, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    right = (np.random.default_rng(seed).random(80) < share).astype(float)
    names = [f"q{i}" for i in range(80)]
    columns = {name: ["x"] * 80 for name in ("group", "prompt", "output", "answer", "reference")}
    table = pa.table({"question_id": names, **columns, "score": right})
    pq.write_table(table, folder / "sums.parquet")
    score = {"score": float(right.mean()), "interval": [0.0, 1.0], "n": 80, "metric": "exact"}
    write_manifest(
        folder,
        kind="evaluation",
        fingerprint={"seed": seed},
        files=["sums.parquet"],
        counts={"questions": 80},
        details={"scores": {"sums": score}},
    )


class Interrupting:
    """Interrupts the program while Python takes the object away, where nothing can be raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
