"""Read the files of docker/kubernetes as services that can be started like the compose file's.

The manifests say their containers themselves. What Dagster's chart makes of its values is written
down here from its templates: three commands, the instance's file and the workspace's. Runs are
processes below the code server, because there is no cluster that would start a pod for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .compose import ComposeFile, ServiceSpec
from .processes import Topology

_WORKSPACE = "/dagster-workspace"
_ONCE = {"condition": "service_completed_successfully"}
_HEALTHY = {"condition": "service_healthy"}
_ASK = (
    "import sys, urllib.request as u; "
    "u.urlopen(u.Request(sys.argv[1], headers=dict(h.split('=') for h in sys.argv[2:])), timeout=5)"
)
Values = dict[str, Any]


def read_cluster(
    folder: Path, database: ServiceSpec, secrets: Mapping[str, Mapping[str, str]], config: Path
) -> ComposeFile:
    """Return the services of ``docker/kubernetes``.

    Parameters
    ----------
    database:
        PostgreSQL as the compose file has it; a cluster's own is in none of the files.
    secrets:
        Keys and values of each secret that the files name.
    config:
        Folder with one folder for each of the chart's config maps and of the user's.
    """
    values = _documents(folder / "dagster-values.yaml")[0]
    (code,) = values["dagster-user-deployments"]["deployments"]
    tracking, fetching = (
        _documents(folder / name)[0]["spec"]["template"]["spec"]
        for name in ("mlflow.yaml", "inputs.yaml")
    )
    (server,), (migration,) = tracking["containers"], tracking["initContainers"]
    (fetch,) = fetching["containers"]
    grpc = ["dagster", "code-server", "start", "-h", "0.0.0.0", "-p", str(code["port"])]  # noqa: S104
    health = ["dagster", "api", "grpc-health-check", "-p", str(code["port"])]
    page = values["dagsterWebserver"]
    port = page["service"]["port"]
    shown = f"dagster-webserver -h 0.0.0.0 -p {port} -w {_WORKSPACE}/workspace.yaml"
    daemon = ["dagster-daemon", "run", "-w", f"{_WORKSPACE}/workspace.yaml"]
    after = {code["name"]: _HEALTHY}

    def made(pod: Values, container: Values, needs: Values, **more: Any) -> Values:  # noqa: ANN401
        return _service(pod, container, secrets, config, needs) | more

    def charted(part: Values, command: list[str], needs: Values, **more: Any) -> Values:  # noqa: ANN401
        return made(*_of_chart(values, part, command), needs, **more)

    once = {"restart": "no"}
    raw = {
        "postgres": {
            **database.raw,
            "networks": {"c": {"aliases": [values["postgresql"]["postgresqlHost"]]}},
        },
        "migrate-mlflow": made(tracking, migration, {"postgres": _HEALTHY}, **once),
        "mlflow": made(tracking, server, {"migrate-mlflow": _ONCE}),
        "inputs": made(fetching, fetch, {}, **once),
        "migrate-dagster": charted(
            page, ["dagster", "instance", "migrate"], {"postgres": _HEALTHY}, **once
        ),
        code["name"]: charted(
            code,
            [*grpc, *code["codeServerArgs"]],
            {"migrate-dagster": _ONCE, "inputs": _ONCE, "mlflow": _HEALTHY},
            healthcheck={"test": ["CMD", *health]},
            ports=[f"{code['port']}:{code['port']}"],
        ),
        "webserver": charted(
            page,
            ["/bin/bash", "-c", shown],
            after,
            healthcheck=_asked(f"http://127.0.0.1:{port}/server_info", {}),
            ports=[f"{port}:{port}"],
        ),
        "daemon": charted(values["dagsterDaemon"], daemon, after),
    }
    return ComposeFile(folder, {}, {name: ServiceSpec(name, entry) for name, entry in raw.items()})


def write_config(topology: Topology, config: Path) -> None:
    """Write what the chart's config maps would hold: the instance and the workspace."""
    values = _documents(topology.compose.path / "dagster-values.yaml")[0]
    (code,) = values["dagster-user-deployments"]["deployments"]
    server = {"host": "127.0.0.1", "port": topology.port(code["port"])}
    workspace = {"load_from": [{"grpc_server": {**server, "location_name": code["name"]}}]}
    (config / "workspace" / "workspace.yaml").write_text(yaml.safe_dump(workspace), "utf-8")
    instance = instance_settings(values)
    instance["storage"]["postgres"]["postgres_db"] |= {
        "hostname": "127.0.0.1",
        "port": topology.port(values["postgresql"]["service"]["port"]),
    }
    (config / "instance" / "dagster.yaml").write_text(yaml.safe_dump(instance), "utf-8")


def instance_settings(values: Values) -> Values:
    """Return the instance's settings, as the chart's template fills them in."""
    database, daemon = values["postgresql"], values["dagsterDaemon"]
    ticks = {
        kind: {"purge_after_days": found["purgeAfterDays"]}
        for kind, found in values["retention"].items()
        if kind != "enabled"
    }
    return {
        "storage": {
            "postgres": {
                "postgres_db": {
                    "username": database["postgresqlUsername"],
                    "password": {"env": "DAGSTER_PG_PASSWORD"},
                    "hostname": database["postgresqlHost"],
                    "port": database["service"]["port"],
                    "db_name": database["postgresqlDatabase"],
                    "params": database["postgresqlParams"],
                    "scheme": database["postgresqlScheme"],
                }
            }
        },
        "scheduler": {
            "module": "dagster._core.scheduler",
            "class": values["scheduler"]["type"],
            "config": _snake(values["scheduler"]["config"]["daemonScheduler"]),
        },
        "run_coordinator": daemon["runCoordinator"]["config"]["customRunCoordinator"],
        "compute_logs": {
            "module": "dagster._core.storage.noop_compute_log_manager",
            "class": "NoOpComputeLogManager",
        },
        "run_monitoring": _snake(daemon["runMonitoring"]),
        "run_retries": _snake(daemon["runRetries"]),
        "python_logs": _snake(values["pythonLogs"]),
        "telemetry": values["telemetry"],
        "retention": ticks,
        **values["additionalInstanceConfig"],
    }


def _snake(settings: Values) -> Values:
    """Return settings under the names of the instance's file; the values stay."""
    return {
        "".join(f"_{c.lower()}" if c.isupper() else c for c in k): v for k, v in settings.items()
    }


def _of_chart(values: Values, part: Values, command: list[str]) -> tuple[Values, Values]:
    """Return the pod and the container that the chart makes of one part of its values."""
    home = values["global"]["dagsterHome"]
    secret = {"name": values["global"]["postgresqlSecretName"], "key": "postgresql-password"}
    password = {"name": "DAGSTER_PG_PASSWORD", "valueFrom": {"secretKeyRef": secret}}
    mounts = [
        {"name": "instance", "mountPath": home},
        {"name": "workspace", "mountPath": _WORKSPACE},
    ]
    container = {
        "command": command,
        "env": [{"name": "DAGSTER_HOME", "value": home}, password, *part.get("env", [])],
        "volumeMounts": [*mounts, *part.get("volumeMounts", [])],
    }
    volumes = [{"name": m["name"], "configMap": {"name": m["name"]}} for m in mounts]
    return {"volumes": [*volumes, *part.get("volumes", [])]}, container


def _service(
    pod: Values,
    container: Values,
    secrets: Mapping[str, Mapping[str, str]],
    config: Path,
    needs: Values,
) -> Values:
    """Return a container as the compose file would describe it."""
    environment = {}
    for entry in container["env"]:
        if (found := entry.get("valueFrom")) is not None:
            reference = found["secretKeyRef"]
            environment[entry["name"]] = secrets[reference["name"]][reference["key"]]
        else:
            environment[entry["name"]] = entry["value"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts, scratch = [], []
    for mount in container["volumeMounts"]:
        volume, target = volumes[mount["name"]], mount["mountPath"]
        if claim := volume.get("persistentVolumeClaim"):
            mounts.append(f"{claim['claimName']}:{target}")
        elif named := volume.get("configMap"):
            mounts.append(f"{config / named['name']}:{target}:ro")
        else:
            scratch.append(target)
    service = {
        "image": container.get("image", ""),
        "build": {"target": "cpu"},
        "command": [*container["command"], *container.get("args", [])],
        "environment": environment,
        "volumes": mounts,
        "tmpfs": scratch,
        "depends_on": needs,
        "restart": "always",
    }
    if probe := container.get("readinessProbe"):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        asked = probe["httpGet"]
        headers = {entry["name"]: entry["value"] for entry in asked.get("httpHeaders", [])}
        address = f"http://127.0.0.1:{ports[asked['port']]}{asked['path']}"
        service["healthcheck"] = _asked(address, headers)
    return service


def _asked(address: str, headers: dict[str, str]) -> Values:
    words = [f"{name}={value}" for name, value in headers.items()]
    return {"test": ["CMD", "python", "-c", _ASK, address, *words]}


def _documents(path: Path) -> list[Values]:
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]
