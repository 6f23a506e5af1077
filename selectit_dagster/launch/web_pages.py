"""``selectit ui``: ``dagster dev`` and ``mlflow server`` on this machine's loopback, as one.

The MLflow store is initialised first: its migrations must not run in two processes at once.
Both are checked for health and end together, whoever ends first. Logs lie in ``logs/`` of the
home.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from selectit_dagster.artefacts.files import folder_lock, write_text
from selectit_dagster.artefacts.home import Home
from selectit_dagster.definitions import build_location
from selectit_dagster.experiment import load_experiment
from selectit_dagster.local_servers import (
    LOOPBACK,
    Service,
    ServiceFailedError,
    free_port,
    running,
    stop_signals,
    wait_healthy,
)
from selectit_dagster.orchestration.asset_keys import LOCATION
from selectit_dagster.orchestration.instance import open_instance
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import ports
from selectit_dagster.progress import say

# MLflow alone took 30 s on two idle cores; a busy machine takes several times that
START_TIMEOUT = 300.0
_WORKSPACE = f"""\
# Written by selectit ui: what the page and the daemon of this home load.
load_from:
  - python_module:
      module_name: selectit_dagster.definitions
      location_name: {LOCATION}
"""


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
    0 when the user ended it; 1 when a server ended by itself or never answered.

    Raises
    ------
    UserError
        When an experiment is wrong, or the home is served already.
    """
    root = Path(home).resolve()
    loaded = [load_experiment(file) for file in experiments]
    pipelines = [Pipeline(experiment, Home(root, experiment.name)) for experiment in loaded]
    # two daemons on one instance would start every scheduled run twice
    with folder_lock(root / "logs", "selectit ui"), stop_signals() as stopping:
        build_location(list(experiments), root)  # refuses two of one name
        with open_instance(pipelines[0].home.dagster):
            pass  # its databases are made here, not by several processes at once
        mlflow, pages = _mlflow(pipelines)
        dagster = _dagster(pipelines[0].home, experiments, pages)
        services = [dagster] if mlflow is None else [mlflow, dagster]
        for service in services:
            say(f"starting {service.name} (log: {service.log})")
        try:
            with running(services) as check:
                if all(wait_healthy(s, check, START_TIMEOUT, stopping) for s in services):
                    _announce(dagster.address.rsplit("/", 1)[0], pages, pipelines, open_browser)
                while not stopping.wait(1.0):
                    check()
                say("stopping")
        except ServiceFailedError as failure:
            say(f"{failure}; everything is stopped. Its last lines ({failure.log}):")
            for line in failure.tail:
                say(f"  {line}")
            return 1
    say("stopped")
    return 0


def _port(page: str, own: int) -> int:
    """Return the home's own port for a page, another where somebody else has taken it."""
    port = free_port(own)
    if port != own:
        say(
            f"port {own}, which is this home's for {page}, is taken: its page is at {port} this "
            f"time, and links and pictures of earlier runs are looked for at {own}"
        )
    return port


def _dagster(home: Home, experiments: Sequence[Path], mlflow: str | None) -> Service:
    """Return Dagster's page, daemon and code server, which are one command."""
    port = _port("Dagster", ports(home.root).dagster)
    address = f"http://{LOOPBACK}:{port}"
    workspace = home.dagster / "workspace.yaml"
    write_text(workspace, _WORKSPACE)
    argv = [sys.executable, "-m", "dagster", "dev", "--workspace", str(workspace)]
    argv += ["--host", LOOPBACK, "--port", str(port)]
    environment = {
        "SELECTIT_EXPERIMENT": os.pathsep.join(str(file) for file in experiments),
        "SELECTIT_HOME": str(home.root),
        "SELECTIT_DAGSTER_UI": address,
        "DAGSTER_HOME": str(home.dagster),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "no_grpc_proxy": LOOPBACK,
        **({"SELECTIT_MLFLOW_UI": mlflow} if mlflow else {}),
    }
    log = home.root / "logs" / "dagster.log"
    return Service("Dagster", argv, log, f"{address}/server_info", environment)


def _mlflow(pipelines: list[Pipeline]) -> tuple[Service | None, str | None]:
    """Return MLflow's server, where the store is ours to serve, and its address."""
    from selectit_dagster.orchestration.resources import make_tracker

    tracked = [p for p in pipelines if p.experiment.tracking.enabled]
    if not tracked:
        return None, None
    tracker, home = make_tracker(tracked[0]), tracked[0].home
    if tracker.uri.startswith(("http://", "https://", "databricks")):
        # somebody else's server: its own address is where a browser finds it
        return None, tracker.ui_url
    say("preparing the MLflow store")
    for pipeline in tracked:
        _ = make_tracker(pipeline).client
    port = _port("MLflow", ports(home.root).mlflow)
    address = f"http://{LOOPBACK}:{port}"
    argv = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
    argv += ["--workers", "1"]
    argv += ["--artifacts-destination", (home.mlflow / "artifacts").as_uri()]
    # its job runner keeps seven more processes for features that are not used here
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # not on the command line: a database's address holds its password, and everybody on
        # the machine may read command lines
        "MLFLOW_BACKEND_STORE_URI": tracker.uri,
        "PYTHONUNBUFFERED": "1",
    }
    log = home.root / "logs" / "mlflow.log"
    return Service("MLflow", argv, log, f"{address}/health", environment), address


def _announce(
    dagster: str, mlflow: str | None, pipelines: list[Pipeline], open_browser: bool
) -> None:
    from selectit_dagster.orchestration.resources import make_tracker

    lines = [f"Dagster  {dagster}", *([f"MLflow   {mlflow}"] if mlflow else [])]
    starts = []
    for pipeline in pipelines:
        if (
            mlflow
            and pipeline.experiment.tracking.enabled
            and (start := make_tracker(pipeline, ui_url=mlflow).start_page())
        ):
            starts.append(start)
            lines.append(f"  arms of {pipeline.experiment.name}  {start}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    say("Ctrl-C ends both")
    if open_browser:
        import webbrowser

        for address in (dagster, *starts[:1]):
            webbrowser.open(address)
