"""What PostgreSQL's container image does around its server, with Debian's packages."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compose import ServiceSpec
    from .processes import Topology

# Debian's package makes this user; PostgreSQL refuses to run as root
USER = "postgres"
_DATA = "/var/lib/postgresql/data"
_SCRIPTS = "/docker-entrypoint-initdb.d"
_SOCKETS = "/var/run/postgresql"


def is_server(service: ServiceSpec) -> bool:
    """Tell whether a service runs PostgreSQL's own image."""
    return str(service.raw["image"]).startswith("postgres:")


def commands() -> str | None:
    """Return the folder of PostgreSQL's commands, or None where it is not installed."""
    if found := shutil.which("initdb"):
        return str(Path(found).parent)
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return str(installed[-1].parent) if installed else None


def environment(topology: Topology, service: ServiceSpec) -> dict[str, str]:
    """Return what the image sets, and the port, which the server reads from there."""
    return {
        "PGDATA": str(_data(topology, service)),
        "PGPORT": str(topology.port(5432)),
        "PGHOST": str(topology.path(service.name, _SOCKETS)),
    }


def prepare(topology: Topology, service: ServiceSpec) -> None:
    """Make the cluster in an empty volume and run the scripts that are mounted for it."""
    data = _data(topology, service)
    sockets = topology.path(service.name, _SOCKETS)
    home = topology.folder / "homes" / service.name
    if (data / "PG_VERSION").exists():
        return
    for folder in (data, sockets, home):
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
    own = topology.environment(service)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        password = Path(scratch) / "password"
        password.write_text(own["POSTGRES_PASSWORD"], encoding="utf-8")
        for path in (Path(scratch), password):
            if os.geteuid() == 0:
                shutil.chown(path, USER, USER)
        options = shlex.split(own.get("POSTGRES_INITDB_ARGS", ""))
        run = ["initdb", "--username", own["POSTGRES_USER"], "--pwfile", str(password), *options]
        _run(topology, service, [*run, "--auth-local=trust", "--encoding=UTF8"])
    # for the scripts the image starts a server that listens on its socket alone
    settings = f"-c listen_addresses='' -c unix_socket_directories={sockets}"
    log = str(home / "setup.log")
    _run(topology, service, ["pg_ctl", "-w", "-l", log, "-o", settings, "start"])
    try:
        for inside in (m.target for m in service.mounts if m.target.startswith(_SCRIPTS)):
            _run(topology, service, ["sh", str(topology.path(service.name, inside))])
    finally:
        _run(topology, service, ["pg_ctl", "-w", "-m", "fast", "stop"])


def _data(topology: Topology, service: ServiceSpec) -> Path:
    return topology.path(service.name, _DATA)


def _run(topology: Topology, service: ServiceSpec, argv: list[str]) -> None:
    own = topology.environment(service)
    identity = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    subprocess.run(
        argv,
        env=own,
        cwd=own["HOME"],
        check=True,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        **identity,
    )
