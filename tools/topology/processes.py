"""Start the services of a compose file as plain processes on this machine.

Commands, environments, health checks, order and restart policies are those of the compose file
and of the image that the Dockerfile describes. Only what a container would give is replaced:

* a service's name and ``0.0.0.0`` become the loopback address, a port becomes a free one;
* volumes, tmpfs mounts and the files that the Dockerfile copies become folders below one folder;
* the end of a service's first process ends every other process of that service.

What PostgreSQL's image does around its server is in ``postgres``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from selectit_dagster.local_servers import LOOPBACK, free_port, tail

from . import postgres
from .compose import ComposeFile, ServiceSpec, Stage

_MARK = "SELECTIT_TOPOLOGY_SERVICE"
_PORT = re.compile(r"(?:port=|PORT=|:)(\d{4,5})\b")
# as the image's user: it may write into its volumes and nowhere else, root or not. That it may read
# everything stands for the image's own files, which here are this checkout's
_ORDINARY = ("nobody", "nogroup")
_CONFINED = [
    *("setpriv", "--reuid", _ORDINARY[0], "--regid", _ORDINARY[1], "--clear-groups"),
    *("--no-new-privs", "--bounding-set", "-all,+dac_read_search"),
    *("--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"),
]
# as Docker does: the pause before a restart doubles, and is short again after a calm while
_FIRST_PAUSE, _LAST_PAUSE, _CALM = 0.1, 60.0, 10.0


class TopologyError(Exception):
    """A service did not do what the others wait for."""


@dataclass
class Running:
    """What is known of a started service."""

    spec: ServiceSpec
    process: subprocess.Popen[bytes]
    log: Path
    started: float
    restarts: int = 0
    pause: float = _FIRST_PAUSE
    exit_codes: list[int] = field(default_factory=list)


class Topology:
    """The services of a compose file, running as processes below one folder.

    Parameters
    ----------
    compose:
        The compose file with its variables filled in.
    stages:
        The Dockerfile's stages by name.
    folder:
        Empty folder for volumes and logs; other users must be able to enter it.
    profiles:
        The compose profiles that are on.
    """

    def __init__(
        self,
        compose: ComposeFile,
        stages: dict[str, Stage],
        folder: Path,
        profiles: tuple[str, ...] = ("cpu",),
    ) -> None:
        self.compose = compose
        self.stages = stages
        self.folder = folder
        self.services = compose.active(*profiles)
        self.running: dict[str, Running] = {}
        self._stopping = threading.Event()
        self._halted: set[str] = set()
        self._lock = threading.RLock()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._replacements = _Replacements(self)

    # --- what a service is here

    def stage(self, service: ServiceSpec) -> Stage | None:
        """Return the stage of our image that a service runs, or None for another's image."""
        build = service.raw.get("build")
        return self.stages[build["target"]] if build else None

    def environment(self, service: ServiceSpec) -> dict[str, str]:
        """Return a service's whole environment: the image's, the compose file's, no others."""
        stage = self.stage(service)
        own = {**(stage.environment if stage else {}), **service.environment}
        own.pop("PATH", None)
        translated = {k: self._replacements.value(service, v) for k, v in own.items()}
        outer = {"PATH": self._path(), "LANG": "C.UTF-8", _MARK: self._mark(service)}
        # a checkout that is not installed is found through it; processes here share two cores
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
            if name in os.environ:
                outer[name] = os.environ[name]
        home = self.folder / "homes" / service.name
        home.mkdir(parents=True, exist_ok=True)
        extra = postgres.environment(self, service) if postgres.is_server(service) else {}
        return {**outer, "HOME": str(home), **translated, **extra}

    def argv(self, service: ServiceSpec, command: list[str] | None = None) -> list[str]:
        """Return a service's command (or another one in it) with its addresses and paths."""
        words = service.command if command is None else command
        confined = _CONFINED if os.geteuid() == 0 and not postgres.is_server(service) else []
        return [*confined, *(self._replacements.word(service, word) for word in words)]

    def path(self, service: str, inside: str) -> Path:
        """Return where a path inside a service's container lies on this machine."""
        return Path(self._replacements.word(self.services[service], inside))

    def port(self, inside: int) -> int:
        """Return the port that stands for one of the compose file's."""
        return self._replacements.ports[str(inside)]

    # --- start, watch, end

    def start(self, *names: str, timeout: float = 600.0) -> None:
        """Start services in the order that ``depends_on`` asks for; return when all are healthy.

        All that do not run yet when no ``names`` are given.

        Raises
        ------
        TopologyError
            When a service ends or does not become healthy in time.
        """
        deadline = time.monotonic() + timeout
        if not self._supervisor.is_alive():
            self._supervisor.start()
        started = {n: self.services[n] for n in names or self.services if n not in self.running}
        waiting = dict(started)
        while waiting:
            ready = [name for name, spec in waiting.items() if self._may_start(spec)]
            for name in ready:
                say(f"starting {name}")
                self._launch(waiting.pop(name))
            if not ready:
                self._wait_a_little(deadline, f"waiting for {', '.join(waiting)}")
        for name, spec in started.items():
            while spec.health and not self.is_healthy(name):
                self._wait_a_little(deadline, f"waiting for {name} to be healthy")
            while not spec.restarts and not self._completed(name):
                self._wait_a_little(deadline, f"waiting for {name} to end")

    def is_healthy(self, name: str) -> bool:
        """Run a service's health check, as it stands in the compose file."""
        spec = self.services[name]
        if name not in self.running or self.running[name].process.poll() is not None:
            return False
        answer = subprocess.run(
            self.argv(spec, spec.health),
            env={**self.environment(spec), _MARK: "health check"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=120,
            **self._identity(spec),
        )
        return answer.returncode == 0

    def execute(self, name: str, command: list[str], **options: Any) -> None:  # noqa: ANN401
        """Run a command as ``docker compose exec`` would in a service's container.

        ``options`` (``stdin``, ``stdout``) go to the process.

        Raises
        ------
        subprocess.CalledProcessError
            When it ends with another code than 0.
        """
        spec = self.services[name]
        argv = self.argv(spec, command)
        environment = {**self.environment(spec), _MARK: "execute"}
        subprocess.run(argv, env=environment, check=True, **options, **self._identity(spec))

    def kill(self, name: str) -> int:
        """Kill every process of a service at once, as ``docker kill`` does; return how many.

        The supervisor starts it again where its restart policy says so.
        """
        with self._lock:
            found = self.members(name)
            for process in found:
                _quietly(process.suspend)
            for process in found:
                _quietly(process.kill)
        return len(found)

    def members(self, name: str) -> list[psutil.Process]:
        """Return the living processes of a service, its first one included."""
        mark = self._mark(self.services[name])
        first = self.running[name].process
        leader = first.pid if first.poll() is None else None  # another's may have its number
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if process.pid == leader or process.environ().get(_MARK) == mark:
                    found[process.pid] = process
                    found.update({p.pid: p for p in process.children(recursive=True)})
            except psutil.Error:
                continue
        return [p for p in found.values() if _alive(p)]

    def halt(self, name: str) -> None:
        """End a service as ``docker compose stop`` does; it is not started again."""
        self._halted.add(name)
        entry = self.running[name]
        if entry.process.poll() is None:
            number = signal.Signals[entry.spec.raw.get("stop_signal", "SIGTERM")]
            _quietly(lambda: entry.process.send_signal(number))
            try:
                entry.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                say(f"{name} had to be killed")
        self.kill(name)

    def stop(self) -> None:
        """End everything, the last one started first."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        for name in reversed(list(self.running)):
            self.halt(name)

    # --- inside

    def _may_start(self, spec: ServiceSpec) -> bool:
        for needed, condition in spec.needs.items():
            if needed not in self.services:
                continue  # of a profile that is off
            if needed not in self.running:
                return False
            if condition == "service_completed_successfully":
                if not self._completed(needed):
                    return False
            elif not self.is_healthy(needed):
                return False
        return True

    def _completed(self, name: str) -> bool:
        entry = self.running[name]
        code = entry.process.poll()
        if code not in (None, 0):
            raise TopologyError(f"{name} ended with {code}:\n" + "\n".join(tail(entry.log)))
        return code == 0

    def _wait_a_little(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            logs = {n: tail(e.log, 8) for n, e in self.running.items()}
            raise TopologyError(f"{what}; logs: {logs}")
        time.sleep(0.5)

    def _launch(self, spec: ServiceSpec) -> None:
        environment = self.environment(spec)
        if postgres.is_server(spec):
            postgres.prepare(self, spec)
        log = self.folder / "logs" / f"{spec.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as handle:
            process = subprocess.Popen(
                self.argv(spec),
                env=environment,
                cwd=environment["HOME"],
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self._identity(spec),
            )
        entry = self.running.get(spec.name)
        if entry is None:
            self.running[spec.name] = Running(spec, process, log, time.monotonic())
        else:
            entry.process, entry.started = process, time.monotonic()

    def _supervise(self) -> None:
        """Start again what ended, as the restart policy says, until the end."""
        while not self._stopping.wait(0.2):
            for name, entry in list(self.running.items()):
                code = entry.process.poll()
                if code is None or not entry.spec.restarts or name in self._halted:
                    continue
                self.kill(name)  # the container's other processes end with the first
                entry.exit_codes.append(code)
                calm = time.monotonic() - entry.started > _CALM
                entry.pause = _FIRST_PAUSE if calm else min(entry.pause * 2, _LAST_PAUSE)
                if self._stopping.wait(entry.pause):
                    return
                entry.restarts += 1
                self._launch(entry.spec)

    def _identity(self, spec: ServiceSpec) -> dict[str, str]:
        """Return the user that a process changes to: servers of PostgreSQL refuse root."""
        if os.geteuid() == 0 and postgres.is_server(spec):
            return {"user": postgres.USER, "group": postgres.USER, "extra_groups": []}
        return {}

    def _mark(self, service: ServiceSpec) -> str:
        return f"{self.folder}:{service.name}"

    def _path(self) -> str:
        scripts = sysconfig.get_path("scripts")
        beside = str(Path(sys.executable).parent)
        return os.pathsep.join([beside, scripts, postgres.commands() or "", "/usr/bin", "/bin"])


class _Replacements:
    """What stands for a container's addresses, ports and paths on this machine."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        texts = []
        for service in topology.services.values():
            texts += [*service.command, *service.health, *map(str, service.raw.get("ports") or [])]
            texts += [f"{name}={value}" for name, value in service.environment.items()]
        found = sorted({port for text in texts for port in _PORT.findall(text)})
        self.ports: dict[str, int] = {}
        for port in found:
            self.ports[port] = _other_free_port(set(self.ports.values()))
        names = sorted({n for s in topology.services.values() for n in s.names}, key=len)
        self._names = "|".join(map(re.escape, reversed(names)))
        self._paths = {name: self._folders(spec) for name, spec in topology.services.items()}

    def value(self, service: ServiceSpec, text: str) -> str:
        """Replace in the value of an environment variable; it may be a service's bare name."""
        return LOOPBACK if re.fullmatch(self._names, text) else self.word(service, text)

    def word(self, service: ServiceSpec, text: str) -> str:
        """Replace in a word of a command."""
        text = re.sub(rf"\b(?:{self._names})(?=:\d)", LOOPBACK, text)
        text = text.replace("0.0.0.0", LOOPBACK)  # noqa: S104 - so that it is not listened on
        if self.ports:
            ports = "|".join(self.ports)
            text = re.sub(rf"(?<!\d)(?:{ports})(?!\d)", lambda m: str(self.ports[m[0]]), text)
        paths = self._paths[service.name]
        if not paths:
            return text
        longest = sorted(paths, key=len, reverse=True)
        pattern = rf"(?<![\w./-])({'|'.join(map(re.escape, longest))})(?=/|$|[^\w.-])"
        return re.sub(pattern, lambda m: str(paths[m[1]]), text)

    def _folders(self, service: ServiceSpec) -> dict[str, Path]:
        """Return each path of a service's container that exists elsewhere here, and make it."""
        root = self.topology.folder
        table: dict[str, Path] = {}
        for target in service.raw.get("tmpfs") or []:
            table[target] = root / "tmpfs" / service.name / target.strip("/")
        for mount in service.mounts:
            if mount.is_bind:
                source = (self.topology.compose.path.parent / mount.source).resolve()
                table[mount.target] = source
            else:
                table[mount.target] = root / "volumes" / mount.source
        stage = self.topology.stage(service)
        for inside, source in (stage.files if stage else {}).items():
            outside = root / "image" / inside.strip("/")
            outside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.topology.compose.path.parents[1] / source, outside)
            table[str(Path(inside).parent)] = outside.parent
        for path in table.values():
            if not path.exists():
                path.mkdir(parents=True)
                if os.geteuid() == 0:  # a named volume takes the owner of the image's folder
                    shutil.chown(path, *_ORDINARY)
        return table


def _other_free_port(taken: set[int]) -> int:
    while (port := free_port(0)) in taken:
        continue
    return port


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except (psutil.Error, OSError):
        return


def say(text: str) -> None:
    """Write a line for the person who watches."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
