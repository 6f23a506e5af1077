"""A tiny whole experiment, and what of its artefacts must not depend on how it was run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import read_manifest, verify
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage

MODELS = Path(__file__).resolve().parents[2] / "selectit_dagster" / "miniature" / "models"
# times, rates and what was taken over are of a run and not of its result
_OF_THE_RUN = {"scored", "reused", "resumed"}
_WITH_TIMES = {"log.jsonl"}
_EXPERIMENT = """\
name: tiny
dataset: {{path: data.jsonl, max_reject_share: 0.2}}
scoring_models:
  - {{name: one, path: {models}/small}}
  - {{name: two, path: {models}/large}}
rating: {{num_prompts: 2, max_batch_tokens: 256}}
selection:
  share: 0.25
  arms: [{{kind: selectit}}, {{kind: random, seeds: [1]}}]
tuning:
  base_model: {{path: {models}/small}}
  seeds: [1]
  epochs: 1
  batch_size: 2
  micro_batch_size: 2
  checkpoint_every: 1
  max_length: 400
  rank: 4
benchmarks:
  - {{name: next, task: exact-match, path: bench.jsonl, max_new_tokens: 4, batch_tokens: 64}}
comparison: {{resamples: 100}}
"""


def write_world(folder: Path, *, records: int = 24) -> Path:
    """Write a dataset, a benchmark and an experiment over two small models."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = [
        {
            "id": f"r{i}",
            "instruction": f"Name the number after {i}.",
            "output": f"The number after {i} is {i + 1}.",
        }
        for i in range(records)
    ]
    rows += [{**rows[0], "id": "twice"}, {"id": "empty", "instruction": "No response here."}]
    rows += [{"id": "long", "instruction": "word " * 2000, "output": "Too long for the model."}]
    _lines(folder / "data.jsonl", rows)
    questions = [
        {"id": f"q{i}", "family": "next", "instruction": f"What follows {i}?", "answer": str(i + 1)}
        for i in range(8)
    ]
    _lines(folder / "bench.jsonl", questions)
    path = folder / "tiny.yaml"
    path.write_text(_EXPERIMENT.format(models=MODELS), encoding="utf-8")
    return path


def _lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pipeline_of(experiment: Path, home: Path) -> Pipeline:
    """Return the pipeline of an experiment file in a home."""
    loaded = load_experiment(experiment)
    return Pipeline(loaded, Home(home.resolve(), loaded.name))


def stages(pipeline: Pipeline) -> list[Stage]:
    """Return every stage, in order."""
    return [stage for phase in pipeline.phases() for stage in phase]


def result(pipeline: Pipeline) -> dict[str, Any]:
    """Return what every complete stage made, without what belongs to the run that made it.

    Every artefact is checked against its manifest on the way.

    Raises
    ------
    ArtefactError
        When an artefact is not what its manifest says.
    """
    made: dict[str, Any] = {}
    for stage in stages(pipeline):
        if read_manifest(stage.folder) is None:
            continue
        manifest = verify(stage.folder)
        if stage.asset == "report":  # its text has times and costs; that it is whole is enough
            made[stage.title] = sorted(manifest.files)
            continue
        counts = {k: v for k, v in manifest.counts.items() if k not in _OF_THE_RUN}
        if stage.asset == "arm_comparison":  # its costs are times
            made[stage.title] = [counts, manifest.details["arms"], manifest.details["sentences"]]
            continue
        files = {
            name: entry["sha256"]
            for name, entry in manifest.files.items()
            if Path(name).name not in _WITH_TIMES and not name.endswith(".png")
        }
        made[stage.title] = [manifest.fingerprint, counts, files]
    return made


def leftovers(pipeline: Pipeline) -> list[str]:
    """Return temporary files and half-made folders that no later run would remove."""
    marks = (".work-", ".stage.", ".part-", ".partial", ".resume", "journal-", ".tmp")
    return sorted(
        path.relative_to(pipeline.home.folder).as_posix()
        for path in pipeline.home.folder.rglob("*")
        if path.name.startswith(marks)
    )
