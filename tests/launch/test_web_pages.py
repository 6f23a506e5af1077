"""The web pages together: started in order, checked, ended with nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
from small_home import make_pipeline, write_experiment

from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.errors import UserError
from selectit_dagster.launch.web_pages import serve
from selectit_dagster.orchestration import resources
from selectit_dagster.orchestration.resources import make_tracker, ports

ROOT = Path(__file__).resolve().parents[2]


def test_a_home_keeps_the_ports_that_it_chose_even_when_they_are_taken_for_a_while(tmp_path):
    chosen = ports(tmp_path)
    assert ports(tmp_path) == chosen
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", chosen.mlflow))
        holder.listen()
        assert ports(tmp_path) == chosen
        assert ports(tmp_path / "another").mlflow != chosen.mlflow
    (tmp_path / "ports.json").write_text("{", encoding="utf-8")
    assert ports(tmp_path).dagster > 0


def test_a_moved_home_keeps_its_ports_and_a_copied_one_chooses_others(tmp_path, monkeypatch):
    first = tmp_path / "first"
    kept = ports(first)
    monkeypatch.setattr(resources, "free_port", lambda preferred: preferred + 7000)
    shutil.copytree(first, tmp_path / "copy")
    assert ports(tmp_path / "copy").mlflow == 12000
    first.rename(tmp_path / "moved")
    assert ports(tmp_path / "moved") == kept
    first.mkdir()
    assert ports(tmp_path / "moved") == kept


def test_links_of_a_home_lead_to_its_ports_unless_told_otherwise(tmp_path, monkeypatch):
    pipeline = make_pipeline(tmp_path, tuning=False)
    tracker = make_tracker(pipeline)
    assert tracker.ui_url == f"http://127.0.0.1:{ports(pipeline.home.root).mlflow}"
    assert tracker.dagster_url == f"http://127.0.0.1:{ports(pipeline.home.root).dagster}"
    assert make_tracker(pipeline, uri="http://mlflow:5000/").ui_url == "http://mlflow:5000"
    monkeypatch.setenv("SELECTIT_MLFLOW_UI", "https://mlflow.example/")
    monkeypatch.setenv("SELECTIT_DAGSTER_UI", "https://dagster.example/")
    tracker = make_tracker(pipeline)
    assert (tracker.ui_url, tracker.dagster_url) == (
        "https://mlflow.example",
        "https://dagster.example",
    )


def test_a_home_is_served_once(tmp_path):
    experiment = write_experiment(tmp_path, tuning=False)
    with (
        folder_lock(tmp_path / "home" / "logs", "selectit ui"),
        pytest.raises(UserError, match="in use by selectit ui"),
    ):
        serve([experiment], tmp_path / "home")


@pytest.fixture
def pages(tmp_path):
    """``selectit ui`` on a fresh home, with both addresses."""
    experiment = write_experiment(tmp_path, tuning=False)
    argv = [sys.executable, "-c", "from selectit_dagster.cli.main import main; main()"]
    argv += ["ui", str(experiment), "--home", str(tmp_path / "home")]
    errors = (tmp_path / "errors.txt").open("w")
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(2)]
    yield process, {name: address for name, address in lines}
    process.kill()
    process.wait()
    errors.close()


def _get(address: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=30) as answer:
        return answer.read()


def _post(address: str, body: dict) -> dict:
    request = urllib.request.Request(  # noqa: S310 - loopback
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return json.loads(answer.read())


def _listening(processes) -> dict[int, str]:
    """Return the ports on which processes accept connections, each with its address."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    # gRPC's sockets are of IPv6 and say IPv4's loopback in its notation
                    found[connection.laddr.port] = connection.laddr.ip.removeprefix("::ffff:")
    return found


def test_both_pages_answer_on_loopback_alone_and_end_together(pages, tmp_path):
    process, addresses = pages
    started = [process, *psutil.Process(process.pid).children(recursive=True)]
    assert b"mlflow" in _get(addresses["MLflow"]).lower()
    query = "{assetNodes {assetKey {path}} repositoriesOrError {... on RepositoryConnection "
    query += "{nodes {location {name}}}}}"
    answer = _post(f"{addresses['Dagster']}/graphql", {"query": query})["data"]
    assert {"path": ["small", "ranking"]} in [node["assetKey"] for node in answer["assetNodes"]]
    assert answer["repositoriesOrError"]["nodes"] == [{"location": {"name": "selectit"}}]
    experiments = _post(
        f"{addresses['MLflow']}/api/2.0/mlflow/experiments/search", {"max_results": 10}
    )["experiments"]
    assert "small" in {entry["name"] for entry in experiments}
    started = [process, *psutil.Process(process.pid).children(recursive=True)]
    heard = _listening(started[1:])
    assert {int(address.rsplit(":", 1)[1]) for address in addresses.values()} <= set(heard)
    assert set(heard.values()) == {"127.0.0.1"}
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    left = [p for p in started[1:] if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert "stopped" in (tmp_path / "errors.txt").read_text()
