"""A Dagster run as a job of a Ray cluster whose nodes also hold the scoring model."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.artefacts.home import Home
from selectit_dagster.experiment import load_experiment
from selectit_dagster.launch.run import run_experiment
from selectit_dagster.local_servers import free_port

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
RECORDS = 200

_INSTANCE = """\
telemetry: {{enabled: false}}
run_coordinator:
  module: dagster._core.run_coordinator.default_run_coordinator
  class: DefaultRunCoordinator
run_launcher:
  module: dagster_ray.core.run_launcher
  class: RayRunLauncher
  config:
    ray:
      address: {dashboard}
      env_vars: [DAGSTER_HOME, SELECTIT_HOME, SELECTIT_EXPERIMENT]
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head with two CPUs and its dashboard, as processes of their own.

    Its address and the environment in which everything that speaks to it runs.
    """
    pytest.importorskip("ray", reason='needs the extra "ray"')
    pytest.importorskip("dagster_ray", reason="needs dagster-ray, as docs/scaling.md says")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    port, dashboard = free_port(26000), free_port(28000)
    short = Path("/tmp") / f"selectit-ray-{os.getpid()}"  # noqa: S108 - sockets: short names only
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += ["--include-dashboard=true", "--object-store-memory=100000000"]
    command += [f"--temp-dir={short}"]
    log = (tmp_path / "head.log").open("wb")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(f"{address}/api/version", environment)
        yield address, environment
    finally:
        head.terminate()
        head.wait(60)
        log.close()
        shutil.rmtree(short, ignore_errors=True)


def ask(address: str, environment: dict[str, str]) -> bytes:
    """Return what the dashboard answers to one who has the token."""
    token = environment["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(  # noqa: S310 - http on loopback
        address, headers={"Authorization": f"Bearer {token}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return bytes(answer.read())


def _wait_for(address: str, environment: dict[str, str], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask(address, environment)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def write_experiment(folder: Path, name: str, **rating: str) -> Path:
    """Write the embedded experiment with fewer records and another engine."""
    folder.mkdir(exist_ok=True)
    source = ROOT / "experiments" / "default.yaml"
    document = yaml.safe_load(source.read_text(encoding="utf-8"))
    text = json.dumps(document).replace("../selectit_dagster", str(ROOT / "selectit_dagster"))
    document = json.loads(text)
    document["dataset"]["limit"] = RECORDS
    document["rating"].update(rating)
    document["ray"]["address"] = "auto"
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def hashes(home: Path, experiment: Path) -> dict[str, str]:
    """Return the files of all scores, of the ranking and of SelectIT's set, by content."""
    loaded = load_experiment(experiment)
    found = Home(home, loaded.name)
    names = [model.name for model in loaded.scoring_models]
    files = [part for name in names for part in sorted(found.scores(name).glob("part-*"))]
    return {str(path.relative_to(found.folder)): sha256_file(path) for path in files}


def test_a_run_that_is_a_job_of_the_cluster_scores_there_what_a_local_run_scores(
    cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, environment = cluster
    instance = tmp_path / "dagster"
    instance.mkdir()
    (instance / "dagster.yaml").write_text(_INSTANCE.format(dashboard=address), encoding="utf-8")
    experiment = write_experiment(tmp_path / "e", "on-ray", engine="ray")
    environment = {
        **environment,
        "DAGSTER_HOME": str(instance),
        "SELECTIT_HOME": str(tmp_path / "home"),
        "SELECTIT_EXPERIMENT": str(experiment),
    }
    command = [sys.executable, "-m", "dagster", "job", "launch"]
    command += ["-m", "selectit_dagster.definitions", "-j", "on_ray_reselect"]
    command += ["--tags", json.dumps({"dagster/partition": "selectit"})]
    launched = subprocess.run(
        command, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert launched.returncode == 0, launched.stderr

    deadline = time.monotonic() + 900
    while True:
        jobs = json.loads(ask(f"{address}/api/jobs/", environment))
        submitted = [job for job in jobs if job["type"] == "SUBMISSION"]
        if submitted and submitted[0]["status"] not in ("PENDING", "RUNNING"):
            break
        assert time.monotonic() < deadline, jobs
        time.sleep(2)
    name = submitted[0]["submission_id"]
    told = json.loads(ask(f"{address}/api/jobs/{name}/logs", environment))["logs"]
    assert submitted[0]["status"] == "SUCCEEDED", told
    # the dashboard is a page that a person can open, and nobody without the token reads the jobs
    assert b"<!doctype html>" in ask(f"{address}/", environment).lower()
    with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
        ask(f"{address}/api/jobs/", {"RAY_AUTH_TOKEN": "another"})

    local = write_experiment(tmp_path / "e", "local", engine="local")
    run_experiment(local, tmp_path / "calm", upto="ranking")
    assert hashes(tmp_path / "home", experiment) == hashes(tmp_path / "calm", local)
