"""Dagster resources: they hold settings and return plain objects of this project."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.home import Home, home_root
from selectit_dagster.errors import redacted
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.page_addresses import dagster_address, mlflow_address
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.tracking import Tracker


class PipelineResource(dg.ConfigurableResource):
    """The experiment file and the home that all assets work in."""

    experiment_file: str
    home: str

    def pipeline(self) -> Pipeline:
        """Return the pipeline of the experiment as the file stands now."""
        experiment = load_experiment(Path(self.experiment_file))
        return Pipeline(experiment, Home(home_root(self.home), experiment.name))


class TrackingResource(dg.ConfigurableResource):
    """MLflow: where it is written to, and where a browser finds it.

    An empty ``uri`` means the experiment's own, else ``$MLFLOW_TRACKING_URI``, else a
    sqlite store in the home.
    """

    uri: str = ""
    ui_url: str = ""

    def tracker(self, pipeline: Pipeline) -> Tracker:
        """Return the tracker of one experiment."""
        return make_tracker(pipeline, uri=self.uri, ui_url=self.ui_url)


@dataclass(frozen=True)
class Access:
    """How assets, jobs and sensors of one component find their own names and resources.

    Attributes
    ----------
    prefix:
        Parts put before every asset key. They also come before the names of jobs, sensors and
        resources, so that a project can hold several components beside its own definitions.
    """

    prefix: tuple[str, ...] = ()

    @classmethod
    def of(cls, key_prefix: str | None) -> Access:
        """Return the access for a prefix as a user writes it: ``team`` or ``team/alpaca``."""
        return cls(tuple(part for part in (key_prefix or "").split("/") if part))

    @property
    def pipeline(self) -> str:
        """Key of the :class:`PipelineResource`."""
        return self.name("selectit_pipeline")

    @property
    def tracking(self) -> str:
        """Key of the :class:`TrackingResource`."""
        return self.name("selectit_tracking")

    @property
    def keys(self) -> set[str]:
        """Keys of the resources that every asset needs."""
        return {self.pipeline, self.tracking}

    def name(self, name: str) -> str:
        """Return the name of a job, sensor, schedule or resource."""
        parts = (*self.prefix, name)
        return "_".join("".join(c if c.isalnum() else "_" for c in part) for part in parts)

    def key(self, *path: str) -> dg.AssetKey:
        """Return an asset's key."""
        return dg.AssetKey([*self.prefix, *path])

    def put(self, key: dg.AssetKey) -> dg.AssetKey:
        """Return a key of ours as it is in this project."""
        return self.key(*key.path)

    def open(self, context: Any) -> tuple[Pipeline, Tracker]:  # noqa: ANN401 - any Dagster context
        """Return the pipeline as the experiment file stands now, and its tracker."""
        pipeline = getattr(context.resources, self.pipeline).pipeline()
        return pipeline, getattr(context.resources, self.tracking).tracker(pipeline)


def make_tracker(pipeline: Pipeline, *, uri: str = "", ui_url: str = "") -> Tracker:
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
        dagster_url=dagster_address(pipeline.home.root),
        enabled=section.enabled,
    )
