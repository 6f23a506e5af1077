"""``selectit ui``: Dagster's page and daemon and MLflow's page on this machine's loopback.

In order: the MLflow store is initialised (its migrations must not run in two processes at
once), then MLflow's server and Dagster's two processes start, each checked for health. They
end together, whoever ends first. Logs lie in ``logs/`` of the home.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.experiment import load_experiment
from selectit_dagster.files import folder_lock, write_text
from selectit_dagster.home import Home
from selectit_dagster.platform.pipeline import Pipeline
from selectit_dagster.platform.services import (
    LOOPBACK,
    Service,
    ServiceDiedError,
    Services,
    ServiceSlowError,
    free_port,
    stop_signals,
)

DAGSTER_PORT = 3000
MLFLOW_PORT = 5000
# MLflow alone took 30 s on two idle cores; a busy machine takes several times that
START_TIMEOUT = 300.0
_WORKSPACE = """\
# Written by selectit ui: what the page and the daemon of this home load.
load_from:
  - python_module:
      module_name: selectit_dagster.definitions
      location_name: selectit
"""


@dataclass(frozen=True)
class Plan:
    """What is started: the services in order, and the addresses for a browser."""

    services: list[Service]
    dagster_address: str
    mlflow_address: str | None


def serve(experiment_file: Path, home: Path, *, open_browser: bool = False) -> int:
    """Serve the pages of an experiment's home until Ctrl-C, SIGTERM or SIGHUP.

    Parameters
    ----------
    experiment_file:
        The YAML that says the run.
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
        When the experiment is wrong, or the home is served already.
    """
    experiment_file = Path(experiment_file).resolve()
    experiment = load_experiment(experiment_file)
    place = Home(Path(home).resolve(), experiment.name)
    line = Pipeline(experiment, place)
    # two daemons on one instance would start every scheduled run twice
    with folder_lock(place.root / "logs", "selectit ui"), stop_signals() as stopping:
        services = Services(stopping)
        try:
            plan = _plan(line, experiment_file)
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


def _plan(line: Pipeline, experiment_file: Path) -> Plan:
    """Prepare both stores and return what to start."""
    from selectit_dagster.platform.instance import prepare_dagster_home

    home = line.home
    prepare_dagster_home(home.dagster)
    workspace = home.dagster / "workspace.yaml"
    write_text(workspace, _WORKSPACE)
    mlflow_service, mlflow_address = _mlflow(line)
    environment = {
        "SELECTIT_EXPERIMENT": str(experiment_file),
        "SELECTIT_HOME": str(home.root),
        "DAGSTER_HOME": str(home.dagster),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        **({"SELECTIT_MLFLOW_UI": mlflow_address} if mlflow_address else {}),
    }
    port = free_port(DAGSTER_PORT)
    address = f"http://{LOOPBACK}:{port}"
    page = [_tool("dagster-webserver"), "-h", LOOPBACK, "-p", str(port), "-w", str(workspace)]
    services = [
        Service(
            "Dagster's web page",
            page,
            home.root / "logs" / "dagster-webserver.log",
            f"{address}/server_info",
            environment,
        ),
        Service(
            "Dagster's daemon",
            [_tool("dagster-daemon"), "run", "-w", str(workspace)],
            home.root / "logs" / "dagster-daemon.log",
            None,
            environment,
        ),
    ]
    return Plan([*([mlflow_service] if mlflow_service else []), *services], address, mlflow_address)


def _mlflow(line: Pipeline) -> tuple[Service | None, str | None]:
    """Return MLflow's server, where the store is ours to serve, and its address."""
    from selectit_dagster.platform.resources import make_tracker

    section = line.experiment.tracking
    tracker = make_tracker(line)
    if not section.enabled:
        return None, None
    if tracker.uri.startswith(("http://", "https://", "databricks")):
        # somebody else's server: its own address is where a browser finds it
        return None, section.ui_url or os.environ.get("SELECTIT_MLFLOW_UI") or tracker.uri
    _say("preparing the MLflow store")
    _ = tracker.client
    port = free_port(MLFLOW_PORT)
    address = f"http://{LOOPBACK}:{port}"
    argv = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
    argv += ["--backend-store-uri", tracker.uri, "--workers", "1"]
    argv += ["--artifacts-destination", (line.home.mlflow / "artifacts").as_uri()]
    log = line.home.root / "logs" / "mlflow.log"
    # its job runner keeps seven more processes for features that are not used here
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONUNBUFFERED": "1",
    }
    return Service("MLflow", argv, log, f"{address}/health", environment), address


def _tool(name: str) -> str:
    """Return the command beside this Python, so that no other installation is started."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _start(services: Services, plan: Plan) -> None:
    """Start the services in order, then wait for each."""
    for service in plan.services:
        _say(f"starting {service.name} (log: {service.log})")
        services.start(service)
    for service in plan.services:
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
