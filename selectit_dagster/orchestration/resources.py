"""The Dagster resource of every asset: from settings to the pipeline, MLflow, and page addresses.

Links are written into Dagster and MLflow while a run goes on, often before anybody serves the
pages. So a home chooses its ports once, when it is first asked, and ``selectit ui`` takes the
same ones as long as they are free.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.artefacts.home import Home, home_root
from selectit_dagster.errors import UserError, redacted
from selectit_dagster.experiment import load_experiment
from selectit_dagster.local_servers import LOOPBACK, free_port
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.tracking import Tracker

_PREFERRED = {"dagster": 3000, "mlflow": 5000}


@dataclass(frozen=True)
class ExperimentResource:
    """The experiment file, the home, and where MLflow and the pages are; no launchpad offers them.

    An empty ``mlflow_uri`` means the experiment's own, else ``$MLFLOW_TRACKING_URI``, else a
    sqlite store in the home; an empty address of a page the home's own.
    """

    experiment_file: str
    home: str
    mlflow_uri: str = ""
    mlflow_ui_url: str = ""
    dagster_url: str = ""

    def open(self) -> tuple[Pipeline, Tracker]:
        """Return the pipeline as the experiment file stands now, and its tracker."""
        experiment = load_experiment(Path(self.experiment_file))
        pipeline = Pipeline(experiment, Home(home_root(self.home), experiment.name))
        addresses = {"ui_url": self.mlflow_ui_url, "dagster_url": self.dagster_url}
        return pipeline, make_tracker(pipeline, uri=self.mlflow_uri, **addresses)


def make_tracker(
    pipeline: Pipeline, *, uri: str = "", ui_url: str = "", dagster_url: str = ""
) -> Tracker:
    """Return the tracker that an experiment asks for."""
    section = pipeline.experiment.tracking
    folder, root = pipeline.home.mlflow, pipeline.home.root
    default = f"sqlite:///{folder / 'mlflow.db'}"
    uri = uri or section.uri or os.environ.get("MLFLOW_TRACKING_URI") or default
    own_page = (
        redacted(uri).replace("***@", "")
        if uri.startswith("http")
        else f"http://{LOOPBACK}:{ports(root).mlflow}"
    )
    dagster = os.environ.get("SELECTIT_DAGSTER_UI") or f"http://{LOOPBACK}:{ports(root).dagster}"
    return Tracker(
        uri=uri,
        experiment=section.experiment or pipeline.experiment.name,
        folder=folder,
        ui_url=(
            ui_url or section.ui_url or os.environ.get("SELECTIT_MLFLOW_UI") or own_page
        ).rstrip("/"),
        dagster_url=dagster_url or dagster.rstrip("/"),
        enabled=section.enabled,
        required=section.required,
    )


@dataclass(frozen=True)
class Ports:
    """The ports of a home's pages."""

    dagster: int
    mlflow: int


def ports(root: Path) -> Ports:
    """Return a home's ports; they are chosen, free ones, and kept, at the first call."""
    file, chosen = root / "ports.json", None
    with contextlib.suppress(UserError, ValueError, TypeError, KeyError):
        known = read_json(file)
        kept, former = Ports(int(known["dagster"]), int(known["mlflow"])), known.get("home")
        if former in (None, str(root)):
            return kept
        # a moved home keeps them, for links and pictures of its pages lead there; a copy does
        # not: both may be served at once
        chosen = None if Path(former).exists() else kept
    chosen = chosen or Ports(**{name: free_port(port) for name, port in _PREFERRED.items()})
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        write_json(file, {**asdict(chosen), "home": str(root)})
    return chosen
