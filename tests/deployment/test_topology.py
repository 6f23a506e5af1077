"""The deployment as plain processes: the chain through GraphQL while each service is killed.

The commands, environments, health checks, order and restart policies are read from
docker/compose.yaml and docker/Dockerfile; see tools/topology.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from deployed import NEEDS_POSTGRES, PASSWORDS, ROOT

from selectit_dagster.artefacts.manifest import MANIFEST, read_manifest
from selectit_dagster.launch.run import run_experiment
from tools.topology.compose import ComposeFile, ServiceSpec, extended, read_compose
from tools.topology.graphql import GraphQL
from tools.topology.processes import Topology, say
from tools.topology.trial import faults, launches, mlflow_runs, open_trial, until, write_experiment
from tools.topology.trial import stages as list_stages

pytestmark = NEEDS_POSTGRES
RUN_SECONDS = 900.0
TEAM = """\
import dagster as dg

import selectit_dagster

@dg.asset
def team_table():
    return selectit_dagster.__version__

defs = dg.Definitions(assets=[team_table])
"""
# tables whose rows come and go while nothing runs
VOLATILE = ("daemon_heartbeats", "concurrency_slots", "pending_steps")
DATABASES = ("dagster", "mlflow")


@pytest.fixture
def topology(stages, monkeypatch):
    """Yield the whole topology, healthy, in a folder that PostgreSQL's user may enter."""
    root = Path(tempfile.mkdtemp(prefix="selectit-topology-"))
    root.chmod(0o755)
    folder = root / "first"
    folder.mkdir()
    write_experiment(root / "experiments")
    variables = {
        **PASSWORDS,
        "SELECTIT_EXPERIMENTS": str(root / "experiments"),
        "SELECTIT_EXPERIMENT": "/home/selectit/experiments/trial.yaml",
    }
    compose = read_compose(ROOT / "docker" / "compose.yaml", variables)
    # on a machine that others use MLflow's restart takes more than 42 seconds; 10 tries wait for 74
    code = compose.services["code-cpu"].raw["environment"]
    code["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "10"
    _add_second_location(compose, root)
    found = [str(root / "team"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    running = Topology(compose, stages, folder)
    _add_to_workspace(running)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(root, ignore_errors=True)


def _block(section: str, language: str) -> str:
    """Return the first block of a language in a section of the documentation."""
    text = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    return re.search(rf"\n## {section}\n.*?```{language}\n(.*?)```", text, re.DOTALL)[1]


def _add_second_location(compose: ComposeFile, root: Path) -> None:
    """Add the documented code location of another team, with a package of its own."""
    package = root / "team" / "team"
    package.mkdir(parents=True)
    (package / "definitions.py").write_text(TEAM, encoding="utf-8")
    for name, raw in extended(compose, _block("A second code location", "yaml")).items():
        # containers have a loopback address each, processes share one
        own = json.loads(json.dumps(raw).replace("4000", "4001"))
        assert own.pop("build", None) is None and own["image"] == "team-selectit:1.0.0"
        # its image is ours with its package
        compose.services[name] = ServiceSpec(name, {**own, "build": {"target": "cpu"}})


def _add_to_workspace(topology: Topology) -> None:
    text = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    (entry,) = re.findall(r"```yaml\n( +- grpc_server: .*?)```", text, re.DOTALL)
    entry = entry.replace("code-team", "127.0.0.1").replace("4000", str(topology.port(4001)))
    with topology.path("webserver", "/etc/selectit/workspace.yaml").open("a") as file:
        file.write(entry)


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


def _documented(direction: str) -> list[tuple[str, list[str], str]]:
    """Return service, command and file of what the documentation has run in a container.

    ``>`` are the commands of a backup, ``<`` those of its restoration.
    """
    text = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    runs = r"docker compose -f \S+ (?:exec|run --rm --no-deps) -T (\S+)"
    found = re.findall(rf"{runs} (.*?) +{direction} (\S+)", text)
    assert len(found) == 4, found
    return [(service, words.split(), file) for service, words, file in found]


def _moved(topology: Topology, stages) -> Topology:
    """Back up as documented, lose everything, and restore as documented under another path."""
    archives = topology.folder.parent / "archives"
    archives.mkdir()
    before = {name: _rows(topology, name) for name in DATABASES}
    for service, words, file in _documented(">"):
        with (archives / file).open("wb") as out:
            topology.execute(service, words, stdout=out)
    topology.stop()
    topology.folder.rename(topology.folder.with_name("lost"))

    elsewhere = topology.folder.with_name("elsewhere")
    elsewhere.mkdir()
    restored = Topology(topology.compose, stages, elsewhere)
    _add_to_workspace(restored)
    try:
        restored.start("postgres")
        for service, words, file in _documented("<"):
            with (archives / file).open("rb") as source:
                restored.execute(service, words, stdin=source)
        # what the running services wrote between the counting and their end is in it or not
        for name, tables in before.items():
            after = _rows(restored, name)
            assert set(after) == set(tables)
            for table, count in after.items():
                assert count >= tables[table] or table in VOLATILE, table
            assert sum(after.values()) > 100
        restored.start()
    except BaseException:
        restored.stop()
        raise
    return restored


def _tracked(topology: Topology) -> dict[str, dict[str, int]]:
    """Return the artefacts of each MLflow run with their sizes, fetched from its server."""
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{topology.port(5000)}")
    found = {}
    for run in mlflow_runs(topology):
        identifier = run["info"]["run_id"]
        with tempfile.TemporaryDirectory() as folder:
            client.download_artifacts(identifier, "", folder)
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            found[identifier] = {str(p.relative_to(folder)): p.stat().st_size for p in files}
    return found


def _differences(line, calm) -> list[str]:
    """Return the files that differ; those that hold times (logs, plots, reports) are left out."""
    found, compared = [], 0
    for ours, theirs in zip(list_stages(line), list_stages(calm), strict=True):
        for name in read_manifest(theirs.folder).files:
            kinds = [".parquet", ".safetensors", ".jsonl"]
            if Path(name).suffix not in kinds or name == "log.jsonl":
                continue
            compared += 1
            if (ours.folder / name).read_bytes() != (theirs.folder / name).read_bytes():
                found.append(f"{ours.title}: {name}")
    assert compared >= 15
    return found


def test_the_chain_ends_whole_whichever_process_is_killed(topology, stages, tmp_path):
    dagster = GraphQL(f"http://127.0.0.1:{topology.port(3000)}")
    experiment = topology.folder.parent / "experiments" / "trial.yaml"
    line = open_trial(experiment, topology.path("code-cpu", "/home/selectit/data"))
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
    calm = open_trial(experiment, tmp_path / "home")
    run_experiment(experiment, tmp_path / "home")
    assert _differences(line, calm) == []

    # another team's code location runs beside it
    run = dagster.launch(assets=[["team_table"]], location="team")
    assert dagster.outcome(run, RUN_SECONDS)["status"] == "SUCCESS"

    # restored in another place, nothing is missing and nothing is made again
    runs, tracked = {run["runId"] for run in dagster.runs(2000)}, _tracked(topology)
    assert sum(map(len, tracked.values())) > 20
    restored = _moved(topology, stages)
    try:
        assert _tracked(restored) == tracked
        dagster = GraphQL(f"http://127.0.0.1:{restored.port(3000)}")
        assert {run["runId"] for run in dagster.runs(2000)} == runs
        line = open_trial(experiment, restored.path("code-cpu", "/home/selectit/data"))
        made = {stage.title: _made(stage) for stage in list_stages(line)}
        for keys, partition in launches(line):
            run = dagster.launch(assets=keys, partition=partition)
            assert dagster.outcome(run, RUN_SECONDS)["status"] == "SUCCESS", (keys, partition)
        assert {stage.title: _made(stage) for stage in list_stages(line)} == made
    finally:
        restored.stop()


def _made(stage) -> int:
    return (stage.folder / MANIFEST).stat().st_mtime_ns
