"""The one place that opens Ray: an existing cluster by address, or one of this machine alone.

Ray is an extra; nothing else imports this module before an experiment says ``engine: ray``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from selectit_dagster.errors import UserError, first_line
from selectit_dagster.experiment import ActorShape, RaySection

LOGGER = logging.getLogger("selectit_dagster")
_CLIENT = "ray://"
# Ray would call home, and bind to every interface of a machine that is a cluster of its own
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TQDM": "0"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# what only a dashboard or a metrics server asks for; it takes computing time from the actors
_UNSEEN = {"enable_metrics_collection": False, "task_events_report_interval_ms": 0}


@dataclass(frozen=True)
class Pool:
    """The most actors that there may be, and what each takes."""

    most: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.most} actors of {self.cpus} CPUs and {self.gpus:g} GPUs"


def living_nodes() -> list[dict[str, Any]]:
    """Return the living nodes of the cluster: ``id``, ``cpus``, ``gpus``."""
    import ray

    return [
        {
            "id": node["NodeID"],
            "cpus": int(node["Resources"].get("CPU", 0)),
            "gpus": float(node["Resources"].get("GPU", 0)),
        }
        for node in ray.nodes()
        if node["Alive"]
    ]


def require_ray() -> None:
    """Refuse with a remedy when the extra is not installed.

    Raises
    ------
    UserError
        When Ray cannot be imported.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "the experiment says engine: ray, and Ray is not installed",
            hint='install the extra: pip install "selectit-dagster[ray]"',
        )


@contextlib.contextmanager
def connected(section: RaySection) -> Iterator[None]:
    """Connect to the section's cluster, or start one of this machine, for the block.

    A process that is connected already (a step of dagster-ray, a test) keeps its connection.

    Raises
    ------
    UserError
        When Ray is absent, or the cluster cannot be reached or lets nobody in.
    """
    require_ray()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if section.address is None and "RAY_ADDRESS" not in os.environ:
        for name, value in _LOOPBACK.items():
            os.environ.setdefault(name, value)
    import ray

    mine = not ray.is_initialized()
    if mine:
        _open(section)
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def _open(section: RaySection) -> None:
    import ray

    address = section.address or os.environ.get("RAY_ADDRESS")
    if address is not None and address.startswith(_CLIENT):
        raise UserError(
            f"{'ray.address' if section.address else 'RAY_ADDRESS'} {address} is a Ray Client "
            "address, whose one proxy all records would go through",
            hint="run on a node of the cluster (ray job submit, or the head) with address: auto",
        )
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address is None:
        settings |= {
            "include_dashboard": section.dashboard,
            "object_store_memory": section.object_store_mb << 20,
            "_system_config": {} if section.dashboard else _UNSEEN,
        }
    try:
        with ThreadPoolExecutor(1, "import") as aside:
            aside.submit(_import_libraries)
            opened = ray.init(address=address or "local", **settings)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise UserError(
            f"{where} cannot be used: {first_line(error)}",
            hint="run on one of its nodes, and give the processes its token (RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH) when it asks for one",
        ) from error
    if page := getattr(opened, "dashboard_url", None):
        LOGGER.info("Ray's dashboard: http://%s", page)


def _import_libraries() -> None:
    """Import what the stage needs next; Ray's own start is mostly waiting for its processes.

    What cannot be imported here is told when the stage itself needs it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - kept by Python


def pool_for(shape: ActorShape, nodes: list[dict[str, Any]]) -> Pool:
    """Return how many actors of a shape the nodes hold, and what each takes.

    With ``actors`` so many are asked for: a cluster that grows may hold them later.

    Raises
    ------
    UserError
        When no node has room for one.
    """
    gpus = shape.gpus_per_actor
    able = [node for node in nodes if node["gpus"] >= gpus and node["cpus"] > 0]
    each = shape.cpus_per_actor or _cpus_each(shape, able)
    most = shape.actors or sum(_on_node(node, shape, each) for node in able)
    if not most:
        found = ", ".join(f"{n['cpus']} CPUs and {n['gpus']:g} GPUs" for n in nodes)
        raise UserError(
            f"no node of the Ray cluster has {gpus:g} GPUs and {each} CPUs for an actor; "
            f"its nodes have {found}",
            hint="lower ray.gpus_per_actor or ray.cpus_per_actor, or set ray.actors for a "
            "cluster that grows",
        )
    return Pool(most, each, gpus)


def _cpus_each(shape: ActorShape, able: list[dict[str, Any]]) -> int:
    fewest = min((node["cpus"] for node in able), default=1)
    if shape.actors_per_node is not None:
        # so many CPUs that no further actor finds room on the node
        return int(max(1, fewest // shape.actors_per_node))
    return 1 if shape.gpus_per_actor else int(fewest)


def _on_node(node: dict[str, Any], shape: ActorShape, cpus: int) -> int:
    fit = node["cpus"] // cpus
    if shape.gpus_per_actor:
        fit = min(fit, int(node["gpus"] / shape.gpus_per_actor + 1e-9))
    return int(min(fit, shape.actors_per_node or fit))
