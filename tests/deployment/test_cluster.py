"""The files for Kubernetes as plain processes: what the input job fetched is rated and tracked.

Every container's command runs with its own arguments and environment; see tools/topology/cluster.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from deployed import NEEDS_POSTGRES, PASSWORDS, ROOT

from selectit_dagster.artefacts.manifest import read_manifest
from tools.topology.cluster import read_cluster, write_config
from tools.topology.graphql import GraphQL
from tools.topology.processes import Topology
from tools.topology.trial import launches, mlflow_runs, open_trial, write_experiment

pytestmark = NEEDS_POSTGRES
MINIATURE = ROOT / "selectit_dagster" / "miniature"
# what stands in this trial for the model and the dataset that inputs.yaml names
REPOSITORIES = {
    "models/meta-llama/Llama-2-7b-hf": MINIATURE / "models" / "small",
    "datasets/tatsu-lab/alpaca": MINIATURE / "data",
}
SECRETS = {
    "selectit-dagster-postgres": {"postgresql-password": PASSWORDS["DAGSTER_PG_PASSWORD"]},
    "selectit-mlflow-postgres": {"password": PASSWORDS["MLFLOW_PG_PASSWORD"]},
}
COMMIT = "0" * 40
FETCHED: list[str] = []


class Hub(http.server.BaseHTTPRequestHandler):
    """A model hub with two repositories, as far as its client asks for a folder's files."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        for name, folder in REPOSITORIES.items():
            repository = name.removeprefix("models/")
            files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
            if path.startswith(f"/api/{name}/tree/"):
                listed = [
                    {"type": "file", "path": n, "size": len(d), "oid": _digest(d)}
                    for n, d in files.items()
                ]
                return self._send(json.dumps(listed).encode())
            if path.startswith(f"/api/{name}/"):
                listed = [{"rfilename": n, "size": len(d)} for n, d in files.items()]
                found = {"id": repository, "sha": COMMIT, "siblings": listed}
                return self._send(json.dumps(found).encode())
            if path.startswith(f"/{repository}/resolve/{COMMIT}/"):
                file = path.rpartition("/")[2]
                if self.command == "GET":
                    FETCHED.append(file)
                return self._send(files[file])
        return self.send_error(404)

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{_digest(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_) -> None: ...


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def cluster(compose, stages, hub):
    """Yield everything that the files describe, healthy, its inputs fetched."""
    root = Path(tempfile.mkdtemp(prefix="selectit-cluster-"))
    root.chmod(0o755)
    config = root / "config"
    for name in ("instance", "workspace", "selectit-experiments"):
        (config / name).mkdir(parents=True)
    (root / "volumes").mkdir()
    database = compose.services["postgres"]
    described = read_cluster(ROOT / "docker" / "kubernetes", database, SECRETS, config)
    running = Topology(described, stages, root)
    # set now: of what was there before, the ports of containers became others
    described.services["inputs"].raw["environment"]["HF_ENDPOINT"] = hub
    write_config(running, config)
    _write_config_map(config / "selectit-experiments", running)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(root, ignore_errors=True)


def _write_config_map(folder: Path, running: Topology) -> None:
    """Write an experiment that reads what the input job fetches."""
    file = write_experiment(folder)
    inputs = running.path("selectit", "/home/selectit/data") / "inputs"
    text = file.read_text(encoding="utf-8")
    text = text.replace(str(MINIATURE / "models" / "small"), str(inputs / "llama-2-7b"))
    text = text.replace(str(MINIATURE / "data"), str(inputs / "alpaca"))
    assert str(MINIATURE) not in text
    file.rename(folder / "experiment.yaml").write_text(text, encoding="utf-8")


def test_what_the_input_job_fetched_is_rated_and_tracked(cluster):
    folder = cluster.path("selectit", "/home/selectit/experiments")
    line = open_trial(folder / "experiment.yaml", cluster.path("selectit", "/home/selectit/data"))
    dagster = GraphQL(f"http://127.0.0.1:{cluster.port(3000)}")
    for keys, partition in launches(line)[:2]:
        run = dagster.launch(assets=keys, partition=partition)
        assert dagster.outcome(run, 900)["status"] == "SUCCESS"
    assert read_manifest(line.home.ranking).counts["ranked"] > 1000
    finished = [r for r in mlflow_runs(cluster) if r["info"]["status"] == "FINISHED"]
    tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in finished]
    assert {"ranking", "selected_dataset"} <= {tag.get("asset") for tag in tags}

    # a second `kubectl apply` of the job fetches nothing again
    assert sorted(FETCHED).count("model.safetensors") == 1
    before = list(FETCHED)
    cluster.execute("inputs", cluster.services["inputs"].command)
    assert before == FETCHED
