"""Keep the deployment busy for a long time while its processes are killed, and look for leaks.

The services of docker/compose.yaml run as plain processes. A schedule starts the re-selection
every minute, the dataset grows every minute, and at random moments a service, or a run's process
alone, is killed with ``kill -9``. Watched: memory, descriptors and threads of each long-lived
process, connections and size of the databases, size of the home. At the end, when the queue is
empty: every tick has its run, every record of the dataset is accounted for and the ranking is
that of an undisturbed run, no MLflow run is open, no pool slot is held.

    python -m tools.soak --minutes 120
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from selectit_dagster.artefacts.files import write_bytes, write_json
from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.launch.run import run_experiment
from tools.topology.compose import read_compose, read_dockerfile
from tools.topology.graphql import GraphQL
from tools.topology.processes import Topology, say
from tools.topology.trial import POOL, ROOT, faults, open_trial, until, write_experiment

PASSWORDS = ("POSTGRES_PASSWORD", "DAGSTER_PG_PASSWORD", "MLFLOW_PG_PASSWORD")
REPORT = ROOT / "tools" / "benchmarks" / "results" / "soak.json"
DATASET = "pool.jsonl"
FIRST_RECORDS, MORE_RECORDS = 100, 10
SERVICES = ("postgres", "mlflow", "code-cpu", "webserver", "daemon")
SAMPLE_SECONDS = 15.0
# a process is judged when it lived this long: in its first quarter of an hour it fills caches
# (a daemon that grew by 87 MB an hour over five minutes grew by 41 over 24)
JUDGED_SECONDS = 1200.0
# more than this between the second and the last quarter of its life is told
MOST_MEGABYTES_PER_HOUR, MOST_DESCRIPTORS, MOST_THREADS = 60.0, 5, 5


@dataclass
class Life:
    """One long-lived process: samples of (seconds, megabytes, descriptors, threads)."""

    service: str
    role: str
    samples: list[tuple[float, float, int, int]] = field(default_factory=list)

    def growth(self) -> dict[str, float] | None:
        """Return the growth from the second quarter of its life to the last, or None if short.

        The first quarter is left out: caches and imports fill up then.
        """
        if not self.samples or self.samples[-1][0] - self.samples[0][0] < JUDGED_SECONDS:
            return None
        quarter = max(len(self.samples) // 4, 1)
        early, late = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        change = [
            statistics.median(s[i] for s in late) - statistics.median(s[i] for s in early)
            for i in range(4)
        ]
        hours = max(change[0], 1.0) / 3600
        return {
            "minutes": round((self.samples[-1][0] - self.samples[0][0]) / 60, 1),
            "megabytes": round(self.samples[-1][1], 1),
            "megabytes_per_hour": round(change[1] / hours, 1),
            "descriptors": change[2],
            "threads": change[3],
        }


def role_of(service: str, words: list[str]) -> str | None:
    """Return what a process is, by its command line; None for one that comes and goes."""
    line = " ".join(words)
    if "spawn_main" in line:  # of the code server's these are runs and their steps
        return "worker" if service == "mlflow" else None
    for mark in ("code-server", "api grpc", "dagster-webserver", "dagster-daemon", "mlflow"):
        if mark in line:
            return mark
    return "postgres" if "postgres" in line and "max_connections" in line else None


class Watch:
    """Samples of the long-lived processes and of the stores."""

    def __init__(self, topology: Topology, home: Path) -> None:
        self.topology = topology
        self.home = home
        self.lives: dict[tuple[int, float], Life] = {}
        self.stores: list[dict[str, Any]] = []
        self.began = time.monotonic()

    def sample(self) -> None:
        """Look at everything once."""
        now = round(time.monotonic() - self.began, 1)
        counts: dict[str, int] = {}
        for service in SERVICES:
            members = self.topology.members(service)
            counts[service] = len(members)
            for process in members:
                self._note(now, service, process)
        self.stores.append({"seconds": now, "processes": counts, **self._stores()})

    def _note(self, now: float, service: str, process: psutil.Process) -> None:
        try:
            role = role_of(service, process.cmdline())
            if role is None:
                return
            memory = process.memory_info().rss / 1e6
            values = (now, memory, process.num_fds(), process.num_threads())
            key = (process.pid, process.create_time())
        except psutil.Error:
            return  # it has just ended
        self.lives.setdefault(key, Life(service, role)).samples.append(values)

    def _stores(self) -> dict[str, Any]:
        query = (
            "select (select count(*) from pg_stat_activity where datname is not null),"
            " pg_database_size('dagster'), pg_database_size('mlflow')"
        )
        try:
            answer = self.psql("postgres", query)
        except (subprocess.SubprocessError, OSError):
            return {}  # it has just been killed
        connections, dagster, mlflow = (int(part) for part in answer.split("|"))
        return {
            "connections": connections,
            "dagster_megabytes": round(dagster / 1e6, 1),
            "mlflow_megabytes": round(mlflow / 1e6, 1),
            "home_megabytes": round(_size(self.home) / 1e6, 1),
        }

    def psql(self, database: str, query: str) -> str:
        """Return what PostgreSQL answers to a query."""
        spec = self.topology.services["postgres"]
        argv = ["psql", "--no-psqlrc", "-At", "-U", "selectit", "-d", database, "-c", query]
        answer = subprocess.run(
            argv,
            env=self.topology.environment(spec),
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return answer.stdout.strip()

    def growing(self) -> Iterator[str]:
        """Yield a sentence for every process that grew more than it should."""
        for life in self.lives.values():
            growth = life.growth()
            if growth is None:
                continue
            name = f"{life.service} ({life.role}) over {growth['minutes']} minutes"
            if growth["megabytes_per_hour"] > MOST_MEGABYTES_PER_HOUR:
                yield f"{name}: memory grows by {growth['megabytes_per_hour']} MB an hour"
            if growth["descriptors"] > MOST_DESCRIPTORS:
                yield f"{name}: {growth['descriptors']:.0f} more open descriptors"
            if growth["threads"] > MOST_THREADS:
                yield f"{name}: {growth['threads']:.0f} more threads"


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # it was renamed meanwhile
    return total


class Dataset:
    """A dataset file that grows: each version is put in place with one rename."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = POOL.read_bytes().splitlines(keepends=True)
        self.count = 0

    def grow(self, by: int) -> None:
        """Add records; the miniature pool has 3,000."""
        self.count = min(self.count + by, len(self.lines))
        write_bytes(self.path, b"".join(self.lines[: self.count]))


def kill_something(topology: Topology, chance: random.Random, victims: list[str]) -> str | None:
    """Kill one of the services, or a run's process alone, and return what was killed."""
    victim = chance.choice(victims)
    if victim != "run":
        topology.kill(victim)
        return victim
    for process in topology.members("code-cpu"):
        try:
            parent = process.parent()
            words, above = process.cmdline(), parent.cmdline() if parent else []
            # the run's own process is the child of the code server; its steps are below it
            if "spawn_main" in " ".join(words) and role_of("code-cpu", above) == "api grpc":
                process.kill()
                return "run"
        except psutil.Error:
            continue
    return None


def soak(
    topology: Topology, dataset: Dataset, options: argparse.Namespace, chance: random.Random
) -> Any:  # noqa: ANN401
    """Run for ``options.minutes`` and return the watch, the kills and the schedule's id."""
    dagster = GraphQL(f"http://127.0.0.1:{topology.port(3000)}", patience=300)
    watch = Watch(topology, topology.path("code-cpu", "/home/selectit/data"))
    schedule = dagster.start_schedule("trial_reselection")
    kills: dict[str, int] = defaultdict(int)
    end = time.monotonic() + 60 * options.minutes
    next_kill = time.monotonic() + 90
    next_growth = time.monotonic() + 60
    while (now := time.monotonic()) < end:
        watch.sample()
        if now > next_growth:
            dataset.grow(MORE_RECORDS)
            next_growth += 60
        # the last minutes are left in peace, so that what is killed last comes back first
        if next_kill < now < end - 60:
            if name := kill_something(topology, chance, options.victims):
                kills[name] += 1
                say(f"killed {name}; {dict(kills)}")
            next_kill = now + 20 + chance.expovariate(1 / 60)
        time.sleep(max(0.0, SAMPLE_SECONDS - (time.monotonic() - now)))
    dagster.stop_schedule(schedule)
    return dagster, watch, dict(kills)


def settle(dagster: GraphQL, seconds: float = 1800.0) -> list[str]:
    """Wait until no run is queued or under way and none will be started again.

    Returns what is still waited for after ``seconds``. Asked seldom and briefly: the runs that
    are waited for share the machine.
    """
    deadline = time.monotonic() + seconds
    before = ""
    while waiting := dagster.unfinished():
        names = [f"{run['jobName']} {run['runId'][:8]} is {run['status']}" for run in waiting]
        if (now := "; ".join(names)) != before:
            say(f"waiting for {len(names)} runs: {now[:500]}")
            before = now
        if time.monotonic() > deadline:
            return [f"after {seconds:.0f} s {name}" for name in names]
        time.sleep(10)
    return []


def compare(line: Any, experiment: Path, folder: Path) -> list[str]:  # noqa: ANN401 - a pipeline
    """Return how the outcome differs from that of an undisturbed run over the same dataset.

    Here the dataset grew between runs, so its records were rated in other batches than at once,
    and float32 scores may differ in their last digits: ids and statuses must be equal, scores to
    1e-5. (Without growth, and killed all the same, files are equal byte for byte: see the tests.)
    """
    import pyarrow.parquet as pq

    run_experiment(experiment, folder, upto="ranking")
    calm = open_trial(experiment, folder)
    columns = ["record_id", "status", "score"]
    ours, theirs = (
        pq.read_table(one.home.ranking / "ranking.parquet", columns=columns).sort_by("record_id")
        for one in (line, calm)
    )
    for name in columns[:2]:
        if ours[name] != theirs[name]:
            return [f"ranking: {name} differs from an undisturbed run"]
    pairs = zip(ours["score"].to_pylist(), theirs["score"].to_pylist(), strict=True)
    far = [
        1
        for one, other in pairs
        if (one is None) != (other is None) or (one is not None and abs(one - other) > 1e-5)
    ]
    return [f"ranking: {len(far)} scores differ from an undisturbed run"] if far else []


def unanswered(dagster: GraphQL) -> list[str]:
    """Return the ticks whose run is not there, and those that failed with none after them.

    A tick that is due while the code server or the database is away fails, and is tried again
    until the next one is due, which is a minute here.
    """
    known = {run["runId"] for run in dagster.runs(5000)}
    found = []
    answered = False
    for tick in dagster.ticks("trial_reselection"):  # newest first
        answered = answered or tick["status"] in ("SUCCESS", "SKIPPED")
        failed = tick["status"] == "FAILURE" and not answered
        if failed or not set(tick["runIds"] or []) <= known:
            found.append(f"the tick of {tick['timestamp']} is {tick['status']}")
    return found


def main() -> int:
    """Run the soak and write the report; 0 when nothing was found."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the services end with this process
    parser = argparse.ArgumentParser(description="Soak the deployment with random kills.")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    victims = [*SERVICES, "run"]
    parser.add_argument("--victims", nargs="+", choices=victims, default=victims)
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="selectit-soak-"))
    folder.chmod(0o755)
    dataset = Dataset(folder / "experiments" / DATASET)
    experiment = write_experiment(folder / "experiments", dataset.path, None)
    dataset.grow(FIRST_RECORDS)
    variables = {
        **{name: os.urandom(12).hex() for name in PASSWORDS},
        "SELECTIT_EXPERIMENTS": str(folder / "experiments"),
        "SELECTIT_EXPERIMENT": "/home/selectit/experiments/trial.yaml",
    }
    compose = read_compose(ROOT / "docker" / "compose.yaml", variables)
    topology = Topology(compose, read_dockerfile(ROOT / "docker" / "Dockerfile"), folder)
    try:
        topology.start(timeout=1200)
        report = _soaked(topology, dataset, experiment, options)
    finally:
        topology.stop()
        shutil.rmtree(folder, ignore_errors=True)
    write_json(options.report, report)
    say(
        f"{len(report['faults'])} faults, {len(report['growing'])} processes grow; {options.report}"
    )
    return 1 if report["faults"] or report["growing"] else 0


def _soaked(
    topology: Topology, dataset: Dataset, experiment: Path, options: argparse.Namespace
) -> dict[str, Any]:
    chance = random.Random(options.seed)  # noqa: S311 - when to kill what
    dagster, watch, kills = soak(topology, dataset, options, chance)
    problems = settle(dagster)
    # once more over the last version of the dataset, then nothing may be left over
    last = dagster.outcome(dagster.launch(job="trial_reselect", partition="selectit"), 1800)
    line = open_trial(experiment, topology.path("code-cpu", "/home/selectit/data"))

    def found() -> list[str]:
        return faults(topology, line, dagster, upto="ranking", answered_by="trial_reselect")

    try:
        until(lambda: not found(), 300, "a state without faults")
    except TimeoutError:
        say("faults remain")
    problems += found() + unanswered(dagster)
    if last["status"] != "SUCCESS":
        problems.append(f"the last re-selection is {last['status']}")
    raw = read_manifest(line.home.raw)
    if raw is None or raw.counts["read"] != dataset.count:
        problems.append(f"{dataset.count} records in the file, read {raw and raw.counts}")
    problems += compare(line, experiment, topology.folder / "calm")
    return _report(topology, dagster, watch, kills, problems, dataset, options)


def _report(
    topology: Topology,
    dagster: GraphQL,
    watch: Watch,
    kills: dict[str, int],
    problems: list[str],
    dataset: Dataset,
    options: argparse.Namespace,
) -> dict[str, Any]:
    runs = dagster.runs(5000)
    statuses = Counter(run["status"] for run in runs)
    ticks = Counter(tick["status"] for tick in dagster.ticks("trial_reselection"))
    retried = sum(1 for run in runs if run["parentRunId"])
    restarted = {run["parentRunId"] for run in runs}
    left = [r for r in runs if r["status"] == "FAILURE" and r["runId"] not in restarted]
    measured = [s for s in watch.stores if "connections" in s]
    lives = [
        {"service": life.service, "role": life.role, **growth}
        for life in watch.lives.values()
        if (growth := life.growth())
    ]
    return {
        "minutes": options.minutes,
        "seed": options.seed,
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg()},
        "kills": kills,
        "restarts": {name: topology.running[name].restarts for name in SERVICES},
        "dagster_runs": {
            **statuses,
            "started again": retried,
            # Dagster could not restart them just then; a later run did their work
            "not started again": len(left),
        },
        "ticks": dict(ticks),
        "records": dataset.count,
        "faults": problems,
        "growing": list(watch.growing()),
        "processes": lives,
        "stores": {"first": measured[:1], "last": measured[-1:]},
        "most_connections": max(s["connections"] for s in measured),
    }


if __name__ == "__main__":
    raise SystemExit(main())
