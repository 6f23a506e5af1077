"""The Dagster code location: everything assembled from one experiment file and one home.

``$SELECTIT_EXPERIMENT`` and ``$SELECTIT_HOME`` choose them; without the first it is the
embedded default. Tests and the command line call :func:`build_defs` with their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from assets import build_assets
from selectit_dagster.experiment import load_experiment
from selectit_dagster.home import Home, home_root
from selectit_dagster.platform import automation
from selectit_dagster.platform.launcher import watched_executor
from selectit_dagster.platform.pipeline import Pipeline
from selectit_dagster.platform.resources import PipelineResource, TrackingResource

DEFAULT_EXPERIMENT = Path(__file__).resolve().parents[1] / "experiments" / "default.yaml"


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
        Put before every asset key, for use inside another project.
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
    assets = build_assets(pipeline)
    resources = {
        "pipeline": PipelineResource(experiment_file=str(path), home=str(pipeline.home.root)),
        "tracking": TrackingResource(uri=mlflow_uri, ui_url=mlflow_ui_url),
    }
    return dg.Definitions(
        assets=_prefixed(automation.with_conditions(assets), key_prefix),
        jobs=automation.jobs(pipeline, key_prefix),
        schedules=automation.schedules(pipeline),
        sensors=automation.sensors(pipeline),
        resources=resources,
    )


def _prefixed(
    assets: list[dg.AssetsDefinition], key_prefix: str | None
) -> list[dg.AssetsDefinition]:
    """Return the assets with ``key_prefix`` before every key, also of what they depend on."""
    if key_prefix is None:
        return assets
    keys = {key for asset in assets for key in asset.keys}
    replacements = {key: key.with_prefix(key_prefix) for key in keys}
    return [asset.with_attributes(asset_key_replacements=replacements) for asset in assets]


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of this process's experiment and home."""
    watched = dg.Definitions(executor=watched_executor(home_root(None)))
    return dg.Definitions.merge(build_defs(experiment_file=experiment_file()), watched)
