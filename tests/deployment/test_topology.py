"""The deployment as plain processes: the chain through GraphQL while each service is killed.

The commands, environments, health checks, order and restart policies are read from
docker/compose.yaml and docker/Dockerfile; see tools/topology.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from deployed import PASSWORDS, ROOT

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.launch.run import run_experiment
from tools.topology import postgres
from tools.topology.compose import read_compose
from tools.topology.graphql import GraphQL
from tools.topology.processes import Topology, say
from tools.topology.trial import faults, launches, open_trial, stages, until, write_experiment

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(
        postgres.commands() is None,
        reason="PostgreSQL is not installed (Debian: apt-get install postgresql)",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("dagster_postgres") is None,
        reason="dagster-postgres is not installed (pip install -r requirements-postgres.lock)",
    ),
]
RUN_SECONDS = 900.0
# tables whose rows come and go while nothing runs
VOLATILE = ("daemon_heartbeats", "concurrency_slots", "pending_steps")


@pytest.fixture
def topology(stages):
    """Yield the whole topology, healthy, in a folder that PostgreSQL's user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="selectit-topology-"))
    folder.chmod(0o755)
    write_experiment(folder / "experiments")
    variables = {
        **PASSWORDS,
        "SELECTIT_EXPERIMENTS": str(folder / "experiments"),
        "SELECTIT_EXPERIMENT": "/home/selectit/experiments/trial.yaml",
    }
    compose = read_compose(ROOT / "docker" / "compose.yaml", variables)
    running = Topology(compose, stages, folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _kill_and_see_it_back(topology: Topology, name: str) -> None:
    count = topology.kill(name)
    assert count >= 1
    say(f"killed {name} ({count} processes)")
    before = topology.running[name].restarts
    until(lambda: topology.running[name].restarts > before, 60, f"the restart of {name}")
    until(lambda: topology.is_healthy(name), 300, f"{name} healthy again")
    say(f"{name} is healthy again")


def _rows(topology: Topology, database: str) -> dict[str, int]:
    """Return the number of rows of each table of a database."""
    out = topology.folder / "rows.txt"
    query = (
        "select tablename, (xpath('/row/c/text()', query_to_xml(format("
        "'select count(*) as c from %I', tablename), false, true, '')))[1]::text "
        "from pg_tables where schemaname = 'public'"
    )
    words = ["psql", "-At", "-U", "selectit", "-d", database, "-c", query]
    with out.open("wb") as handle:
        topology.execute("postgres", words, stdout=handle)
    pairs = [line.split("|") for line in out.read_text(encoding="utf-8").splitlines()]
    return {name: int(count) for name, count in pairs}


def _documented(pattern: str) -> list[tuple[list[str], str]]:
    """Return the commands of the documentation that run in the database's container."""
    text = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"docker compose -f \S+ exec -T postgres ({pattern} .*?) +[<>] (\S+)", text)
    return [(words.split(), file) for words, file in found]


def _back_up_and_restore(topology: Topology) -> None:
    """Follow the documentation: dump both databases, stop what uses them, restore."""
    dumps = _documented("pg_dump")
    before = {name: _rows(topology, name) for name in ("dagster", "mlflow")}
    assert len(dumps) == 2
    for words, file in dumps:
        with (topology.folder / file).open("wb") as out:
            topology.execute("postgres", words, stdout=out)
    for name in ("daemon", "webserver", "code-cpu", "mlflow"):
        topology.halt(name)
    restores = _documented("pg_restore")
    assert len(restores) == 2
    for words, file in restores:
        database = words[words.index("-d") + 1]
        emptied = f"truncate {', '.join(before[database])}"
        topology.execute("postgres", ["psql", "-q", "-U", "selectit", database, "-c", emptied])
        assert not any(_rows(topology, database).values())
        with (topology.folder / file).open("rb") as source:
            topology.execute("postgres", words, stdin=source)
    # what the running services wrote between the dump and their end is not in it
    for name, tables in before.items():
        after = _rows(topology, name)
        assert set(after) == set(tables)
        for table, count in after.items():
            assert count >= tables[table] or table in VOLATILE, table
    assert sum(before["dagster"].values()) > 100 and sum(before["mlflow"].values()) > 100


def _differences(line, calm) -> list[str]:
    """Return the files that differ; those that hold times (logs, plots, reports) are left out."""
    found, compared = [], 0
    for ours, theirs in zip(stages(line), stages(calm), strict=True):
        for name in read_manifest(theirs.folder).files:
            kinds = [".parquet", ".safetensors", ".jsonl"]
            if Path(name).suffix not in kinds or name == "log.jsonl":
                continue
            compared += 1
            if (ours.folder / name).read_bytes() != (theirs.folder / name).read_bytes():
                found.append(f"{ours.title}: {name}")
    assert compared >= 15
    return found


def test_the_chain_ends_whole_whichever_process_is_killed(topology, tmp_path):
    dagster = GraphQL(f"http://127.0.0.1:{topology.port(3000)}")
    line = open_trial(
        topology.folder / "experiments" / "trial.yaml",
        topology.path("code-cpu", "/home/selectit/data"),
    )
    chain = launches(line)
    scores = line.home.scores("small")

    # killed in the middle of scoring: the code server with the run in it, then the database
    run = dagster.launch(assets=chain[0][0])
    until(lambda: list(scores.glob("[!.]*")), 300, "the first scores")
    assert read_manifest(scores) is None
    _kill_and_see_it_back(topology, "code-cpu")
    _kill_and_see_it_back(topology, "postgres")
    last = dagster.outcome(run, RUN_SECONDS)
    assert last["status"] == "SUCCESS"
    assert last["runId"] != run, "the run was not started again"

    # and every service once more while the rest of the chain runs
    victims = ["mlflow", "daemon", "webserver", "code-cpu", "postgres"]
    for keys, partition in chain[1:]:
        run = dagster.launch(assets=keys, partition=partition)
        if victims:
            _kill_and_see_it_back(topology, victims.pop(0))
        assert dagster.outcome(run, RUN_SECONDS)["status"] == "SUCCESS", (keys, partition)
    assert not victims

    # the sensors that close MLflow's runs, and the freeing of pool slots, take their turns
    with contextlib.suppress(TimeoutError):
        until(lambda: not faults(topology, line, dagster), 300, "a state without faults")
    assert faults(topology, line, dagster) == []

    # the same files as a run that nobody disturbed
    calm = open_trial(topology.folder / "experiments" / "trial.yaml", tmp_path / "home")
    run_experiment(topology.folder / "experiments" / "trial.yaml", tmp_path / "home")
    assert _differences(line, calm) == []

    _back_up_and_restore(topology)
