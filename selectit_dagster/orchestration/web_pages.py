"""``selectit ui``: Dagster's page and daemon and MLflow's page on this machine's loopback.

In order: the MLflow store is initialised (its migrations must not run in two processes at
once), MLflow's server and one code server start, then Dagster's page and daemon, which both
use that code server: with one of their own each, the daemon would load the definitions anew
every minute. All are checked for health and end together, whoever ends first. Logs lie in
``logs/`` of the home.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.artefacts.files import folder_lock, write_text
from selectit_dagster.artefacts.home import Home
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.page_addresses import ports
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.services import (
    LOOPBACK,
    Service,
    ServiceDiedError,
    Services,
    ServiceSlowError,
    answers,
    free_port,
    stop_signals,
)

# MLflow alone took 30 s on two idle cores; a busy machine takes several times that
START_TIMEOUT = 300.0
_WORKSPACE = """\
# Written by selectit ui: what the page and the daemon of this home load.
load_from:
  - grpc_server:
      host: {host}
      port: {port}
      location_name: selectit
"""


@dataclass(frozen=True)
class Plan:
    """What is started: the servers first, then what needs them; addresses for a browser."""

    servers: list[Service]
    clients: list[Service]
    dagster_address: str
    mlflow_address: str | None


def serve(experiments: Sequence[Path], home: Path, *, open_browser: bool = False) -> int:
    """Serve the pages of a home's experiments until Ctrl-C, SIGTERM or SIGHUP.

    Parameters
    ----------
    experiments:
        The YAML files that say the runs; they stand side by side.
    home:
        Root of the home; what lies in it already is shown.
    open_browser:
        Open Dagster's page in the user's browser once it answers.

    Returns
    -------
    0 when the user ended it; 1 when a service ended by itself or never answered.

    Raises
    ------
    UserError
        When an experiment is wrong, or the home is served already.
    """
    pipelines = [_pipeline(file, Path(home).resolve()) for file in experiments]
    pipeline, place = pipelines[0], pipelines[0].home
    _take_over(list(zip(experiments, pipelines, strict=True)))
    # two daemons on one instance would start every scheduled run twice
    with folder_lock(place.root / "logs", "selectit ui"), stop_signals() as stopping:
        services = Services(stopping)
        try:
            plan = _plan(pipeline, experiments)
            _start(services, plan)
            if not stopping():
                _announce(plan, open_browser)
            services.watch()
            _say("stopping")
        except (ServiceDiedError, ServiceSlowError) as failure:
            _report(failure)
            return 1
        finally:
            services.stop()
    _say("stopped")
    return 0


def _pipeline(file: Path, root: Path) -> Pipeline:
    experiment = load_experiment(file)
    return Pipeline(experiment, Home(root, experiment.name))


def _take_over(served: list[tuple[Path, Pipeline]]) -> None:
    """Show what a home of before has under the keys of now."""
    from selectit_dagster.definitions import build_defs, build_location
    from selectit_dagster.orchestration.instance import open_instance
    from selectit_dagster.orchestration.take_over import take_over

    home = served[0][1].home
    build_location([file for file, _ in served], home.root)  # refuses two of one name
    with open_instance(home.dagster) as instance:
        for file, pipeline in served:
            take_over(instance, pipeline, build_defs(experiment_file=file, home=home.root))


def _plan(pipeline: Pipeline, experiments: Sequence[Path]) -> Plan:
    """Prepare both stores and return what to start."""
    from selectit_dagster.orchestration.instance import prepare_dagster_home

    home = pipeline.home
    prepare_dagster_home(home.dagster)
    mlflow_service, mlflow_address = _mlflow(pipeline)
    environment = {
        "SELECTIT_EXPERIMENT": os.pathsep.join(str(file) for file in experiments),
        "SELECTIT_HOME": str(home.root),
        "DAGSTER_HOME": str(home.dagster),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        "no_grpc_proxy": LOOPBACK,
        **({"SELECTIT_MLFLOW_UI": mlflow_address} if mlflow_address else {}),
    }
    port = free_port(ports(home.root).dagster)
    address = f"http://{LOOPBACK}:{port}"
    environment["SELECTIT_DAGSTER_UI"] = address
    code = _code_server(home, environment)
    workspace = str(home.dagster / "workspace.yaml")
    page = [_tool("dagster-webserver"), "-h", LOOPBACK, "-p", str(port), "-w", workspace]
    clients = [
        Service(
            "Dagster's web page",
            page,
            home.root / "logs" / "dagster-webserver.log",
            lambda: answers(f"{address}/server_info"),
            environment,
        ),
        Service(
            "Dagster's daemon",
            [_tool("dagster-daemon"), "run", "-w", workspace],
            home.root / "logs" / "dagster-daemon.log",
            None,
            environment,
        ),
    ]
    servers = [service for service in (mlflow_service, code) if service is not None]
    return Plan(servers, clients, address, mlflow_address)


def _code_server(home: Home, environment: dict[str, str]) -> Service:
    """Return the server that loads the definitions, and write the workspace that names it."""
    port = free_port(0)
    write_text(home.dagster / "workspace.yaml", _WORKSPACE.format(host=LOOPBACK, port=port))
    argv = [_tool("dagster"), "code-server", "start", "-h", LOOPBACK, "-p", str(port)]
    argv += ["-m", "selectit_dagster.definitions", "--location-name", "selectit"]
    return Service(
        "Dagster's code server",
        [*argv, "--use-python-environment-entry-point"],
        home.root / "logs" / "dagster-code.log",
        lambda: _serves(port),
        environment,
    )


def _serves(port: int) -> bool:
    """Ask a Dagster code server for its health, as gRPC's health protocol has it."""
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"{LOOPBACK}:{port}", options=options) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service="DagsterApi"), timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


def _mlflow(pipeline: Pipeline) -> tuple[Service | None, str | None]:
    """Return MLflow's server, where the store is ours to serve, and its address."""
    from selectit_dagster.orchestration.resources import make_tracker

    section = pipeline.experiment.tracking
    tracker = make_tracker(pipeline)
    if not section.enabled:
        return None, None
    if tracker.uri.startswith(("http://", "https://", "databricks")):
        # somebody else's server: its own address is where a browser finds it
        return None, section.ui_url or os.environ.get("SELECTIT_MLFLOW_UI") or tracker.ui_url
    _say("preparing the MLflow store")
    _ = tracker.client
    port = free_port(ports(pipeline.home.root).mlflow)
    address = f"http://{LOOPBACK}:{port}"
    argv = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
    argv += ["--workers", "1"]
    argv += ["--artifacts-destination", (pipeline.home.mlflow / "artifacts").as_uri()]
    log = pipeline.home.root / "logs" / "mlflow.log"
    # its job runner keeps seven more processes for features that are not used here
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # not on the command line: a database's address holds its password, and everybody on
        # the machine may read command lines
        "MLFLOW_BACKEND_STORE_URI": tracker.uri,
        "PYTHONUNBUFFERED": "1",
    }
    return Service("MLflow", argv, log, lambda: answers(f"{address}/health"), environment), address


def _tool(name: str) -> str:
    """Return the command beside this Python, so that no other installation is started."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _start(services: Services, plan: Plan) -> None:
    """Start the servers, what needs them once they serve, and wait for all."""
    for service in plan.servers:
        _say(f"starting {service.name} (log: {service.log})")
        services.start(service)
    # MLflow's is the slowest, and Dagster's pages need only the last one, the code server
    if not services.wait_healthy(plan.servers[-1], START_TIMEOUT):
        return
    for service in plan.clients:
        _say(f"starting {service.name} (log: {service.log})")
        services.start(service)
    for service in (*plan.clients, *plan.servers):
        if not services.wait_healthy(service, START_TIMEOUT):
            return


def _announce(plan: Plan, open_browser: bool) -> None:
    lines = [f"Dagster  {plan.dagster_address}"]
    if plan.mlflow_address:
        lines.append(f"MLflow   {plan.mlflow_address}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    _say("Ctrl-C ends both")
    if open_browser:
        import webbrowser

        webbrowser.open(plan.dagster_address)


def _report(failure: ServiceDiedError | ServiceSlowError) -> None:
    _say(f"{failure}; everything is being stopped. Its last lines ({failure.log}):")
    for line in failure.tail:
        _say(f"  {line}")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
