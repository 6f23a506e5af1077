"""The Dagster code location: everything assembled from one experiment file and one home.

``$SELECTIT_EXPERIMENT`` and ``$SELECTIT_HOME`` choose them; without the first it is the
embedded default. Tests and the command line call :func:`build_defs` with their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from selectit_dagster.artefacts.home import Home, home_root
from selectit_dagster.assets import build_assets
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration import automation
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import Access, PipelineResource, TrackingResource
from selectit_dagster.orchestration.run_cleanup import closing_sensors
from selectit_dagster.orchestration.run_launcher import watched_executor

DEFAULT_EXPERIMENT = Path(__file__).resolve().parent / "experiments" / "default.yaml"


def experiment_file() -> Path:
    """Return the experiment file that this process works on."""
    return Path(os.environ.get("SELECTIT_EXPERIMENT") or DEFAULT_EXPERIMENT)


def build_defs(
    *,
    experiment_file: Path,
    home: Path | str | None = None,
    key_prefix: str | None = None,
    mlflow_uri: str = "",
    mlflow_ui_url: str = "",
) -> dg.Definitions:
    """Return the definitions of one experiment in one home.

    Parameters
    ----------
    experiment_file:
        The YAML that says the run.
    home:
        Where artefacts lie; ``$SELECTIT_HOME`` or ``./.selectit`` when None.
    key_prefix:
        Put before every asset key (``team`` or ``team/alpaca``) and into every other name,
        for use inside another project.
    mlflow_uri, mlflow_ui_url:
        Tracking URI and browser address; empty for the experiment's own.

    Raises
    ------
    UserError
        When the experiment file is wrong.
    """
    path = Path(experiment_file).resolve()
    experiment = load_experiment(path)
    pipeline = Pipeline(experiment, Home(home_root(home), experiment.name))
    access = Access.of(key_prefix)
    place = PipelineResource(experiment_file=str(path), home=str(pipeline.home.root))
    tracking = TrackingResource(uri=mlflow_uri, ui_url=mlflow_ui_url)
    assets = automation.with_conditions(build_assets(pipeline, access), access)
    ours = frozenset(key for a in assets if isinstance(a, dg.AssetsDefinition) for key in a.keys)
    jobs = automation.jobs(pipeline, access)
    return dg.Definitions(
        assets=assets,
        jobs=list(jobs.values()),
        schedules=automation.schedules(pipeline, access, jobs["reselect"]),
        sensors=[
            automation.source_sensor(pipeline, access, jobs["reselect"]),
            automation.automation_sensor(assets, access),
            *closing_sensors(access, place, tracking, ours),
        ],
        resources={access.pipeline: place, access.tracking: tracking},
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of this process's experiment and home."""
    watched = dg.Definitions(executor=watched_executor(home_root(None)))
    return dg.Definitions.merge(build_defs(experiment_file=experiment_file()), watched)
