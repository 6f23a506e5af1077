"""The Dagster resource of every asset: settings, from which it opens the pipeline and MLflow."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.artefacts.home import Home, home_root
from selectit_dagster.errors import redacted
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.services import dagster_address, mlflow_address
from selectit_dagster.orchestration.tracking import Tracker


@dataclass(frozen=True)
class Place:
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
    folder = pipeline.home.mlflow
    default = f"sqlite:///{folder / 'mlflow.db'}"
    uri = uri or section.uri or os.environ.get("MLFLOW_TRACKING_URI") or default
    own_page = (
        redacted(uri).replace("***@", "")
        if uri.startswith("http")
        else mlflow_address(pipeline.home.root)
    )
    return Tracker(
        uri=uri,
        experiment=section.experiment or pipeline.experiment.name,
        folder=folder,
        ui_url=(
            ui_url or section.ui_url or os.environ.get("SELECTIT_MLFLOW_UI") or own_page
        ).rstrip("/"),
        dagster_url=dagster_url or dagster_address(pipeline.home.root),
        enabled=section.enabled,
        required=section.required,
    )
