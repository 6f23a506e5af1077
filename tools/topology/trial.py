"""A small experiment for a running topology, and what must hold after it, whatever was killed."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage

from .graphql import GraphQL
from .processes import Topology

ROOT = Path(__file__).resolve().parents[2]
_MINIATURE = ROOT / "selectit_dagster" / "miniature"
_EXPERIMENT = """\
name: trial
dataset: {{path: {pool}, license: apache-2.0, limit: {limit}}}
scoring_models: [{{name: small, path: {models}/small}}]
rating: {{num_prompts: 5, num_ratings: 5}}
selection: {{share: 0.1, arms: [{{kind: selectit}}, {{kind: random, seeds: [1]}}]}}
tuning:
  base_model: {{path: {models}/small}}
  seeds: [1]
  epochs: 1
  batch_size: 16
  micro_batch_size: 16
  max_length: 256
benchmarks:
  - {{name: miniature, task: exact-match, path: {questions}, limit: 60, max_new_tokens: 8}}
comparison: {{resamples: 200}}
schedule: {{cron: "* * * * *"}}
"""
_SLOTS = "{ instance { concurrencyLimits { concurrencyKey claimedSlots { runId stepKey } } } }"
POOL = _MINIATURE / "data" / "pool.jsonl"


def write_experiment(folder: Path, pool: Path = POOL, limit: int | None = 1500) -> Path:
    """Write the trial's experiment file into ``folder`` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _EXPERIMENT.format(
        pool=pool,
        questions=_MINIATURE / "data" / "benchmark.jsonl",
        models=_MINIATURE / "models",
        limit=limit or "null",
    )
    path = folder / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def open_trial(experiment_file: Path, home: Path) -> Pipeline:
    """Return the trial's pipeline in a home."""
    experiment = load_experiment(experiment_file)
    return Pipeline(experiment, Home(home, experiment.name))


def launches(pipeline: Pipeline) -> list[tuple[list[list[str]], str | None]]:
    """Return the chain as launches: the assets of each, and their partition."""
    found, access = [], Access.of(pipeline.experiment)
    for phase in pipeline.phases():
        keys = [list(access.key(stage.asset).path) for stage in phase]
        found.append((keys, phase[0].partition))
    return found


def stages(pipeline: Pipeline) -> list[Stage]:
    """Return every stage of the chain."""
    return [stage for phase in pipeline.phases() for stage in phase]


def faults(
    topology: Topology,
    pipeline: Pipeline,
    dagster: GraphQL,
    *,
    upto: str | None = None,
    answered_by: str | None = None,
) -> list[str]:
    """Return what is not as it should be in a finished trial; nothing may be.

    Artefacts (those before and including asset ``upto``), the counts of records, Dagster's runs
    and pools, MLflow's runs, the daemon. A failed run must have been started again, or, with
    ``answered_by``, a later run of that job must have done its work.
    """
    made = stages(pipeline)
    names = [stage.asset for stage in made]
    found = _artefact_faults(pipeline, made if upto is None else made[: names.index(upto) + 1])
    found += _run_faults(dagster, answered_by)
    found += _tracking_faults(topology, pipeline, dagster)
    daemons = topology.services["daemon"].raw.get("deploy", {}).get("replicas", 1)
    leaders = [p for p in topology.members("daemon") if "run" in " ".join(_words(p))]
    if daemons != 1 or len(leaders) != 1:
        found.append(f"{len(leaders)} daemons run")
    return found


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _artefact_faults(pipeline: Pipeline, made: list[Stage]) -> list[str]:
    found = []
    for stage in made:
        manifest = read_manifest(stage.folder)
        if manifest is None:
            found.append(f"{stage.title} was not made")
            continue
        for name, fact in manifest.files.items():
            if sha256_file(stage.folder / name) != fact["sha256"]:
                found.append(f"{stage.title}: {name} is not what its manifest says")
    return found or _count_faults(pipeline)


def _count_faults(pipeline: Pipeline) -> list[str]:
    """Return each stage at which a record was lost or counted twice."""
    raw, curated = read_manifest(pipeline.home.raw), read_manifest(pipeline.home.curated)
    ranking = read_manifest(pipeline.home.ranking)
    assert raw is not None and curated is not None and ranking is not None  # noqa: S101
    found = []
    read = raw.counts["read"]
    if read != raw.counts["kept"] + raw.counts["rejected"]:
        found.append(f"reading: {raw.counts}")
    reasons = ("rejected", "duplicate", "near_duplicate", "contaminated")
    dropped = sum(curated.counts.get(reason, 0) for reason in reasons)
    if raw.counts["kept"] != curated.counts["kept"] + dropped:
        found.append(f"curation: {raw.counts} to {curated.counts}")
    parts = sum(ranking.counts.get(k, 0) for k in ("ranked", "too_long", "failed"))
    if curated.counts["kept"] != parts:
        found.append(f"ranking: {curated.counts} to {ranking.counts}")
    return found


def _run_faults(dagster: GraphQL, answered_by: str | None) -> list[str]:
    found = []
    runs = dagster.runs(2000)
    retried = {run["parentRunId"] for run in runs if run["parentRunId"]}
    answered = False
    for run in runs:  # newest first
        answered = answered or (run["status"] == "SUCCESS" and run["jobName"] == answered_by)
        if run["status"] == "FAILURE" and answered:
            continue
        if run["status"] in ("SUCCESS", "CANCELED"):
            continue
        if run["status"] == "FAILURE" and run["runId"] in retried:
            continue
        found.append(f"Dagster run {run['runId']} is {run['status']}")
    for pool in dagster.ask(_SLOTS)["instance"]["concurrencyLimits"]:
        for slot in pool["claimedSlots"]:
            found.append(f"pool {pool['concurrencyKey']}: a slot is held by {slot['runId']}")
    return found


def _tracking_faults(topology: Topology, pipeline: Pipeline, dagster: GraphQL) -> list[str]:
    found = []
    notes = pipeline.home.mlflow / "tracking-failures.jsonl"
    if notes.exists() and notes.read_text(encoding="utf-8").strip():
        found.append(f"calls to MLflow failed: {notes.read_text(encoding='utf-8')[:500]}")
    runs = mlflow_runs(topology)
    found += [f"MLflow run {r['info']['run_name']} is RUNNING" for r in runs if _open(r)]
    done = {
        (tag["dagster.run_id"], tag["dagster.asset_key"])
        for tag in map(_tags, runs)
        if tag.get("selectit.level") == "asset" and tag["mlflow_status"] == "FINISHED"
    }
    for node in dagster.assets():
        key = "/".join(node["assetKey"]["path"])
        for event in node["assetMaterializations"]:
            if (event["runId"], key) not in done:
                found.append(f"{key} of Dagster run {event['runId']} has no finished MLflow run")
    return found


def _open(run: dict[str, Any]) -> bool:
    return bool(run["info"]["status"] == "RUNNING")


def _tags(run: dict[str, Any]) -> dict[str, str]:
    tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
    return {**tags, "mlflow_status": run["info"]["status"]}


def mlflow_runs(topology: Topology) -> list[dict[str, Any]]:
    """Return every run of every experiment, as MLflow's server tells it."""
    address = f"http://127.0.0.1:{topology.port(5000)}/api/2.0/mlflow"
    experiments = _post(f"{address}/experiments/search", {"max_results": 100})["experiments"]
    found: list[dict[str, Any]] = []
    token = None
    while True:
        body = {
            "experiment_ids": [e["experiment_id"] for e in experiments],
            "max_results": 1000,
            **({"page_token": token} if token else {}),
        }
        answer = _post(f"{address}/runs/search", body)
        found += answer.get("runs", [])
        token = answer.get("next_page_token")
        if not token:
            return found


def _post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - http on loopback
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return dict(json.loads(answer.read()))


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:  # noqa: ANN401
    """Wait until ``condition`` gives something true, and return that.

    Raises
    ------
    TimeoutError
        After ``seconds``, saying what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.5)
    return found
