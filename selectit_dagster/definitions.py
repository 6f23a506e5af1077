"""The Dagster code location: everything assembled from experiment files and one home.

``$SELECTIT_EXPERIMENT`` and ``$SELECTIT_HOME`` choose them: one file, several with a colon
between them, or a folder of them; without the first it is the embedded default. Tests and the
command line call :func:`build_defs` with their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from selectit_dagster.artefacts.home import Home, home_root
from selectit_dagster.assets import build_assets
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import load_experiment
from selectit_dagster.experiment.section import key_part
from selectit_dagster.orchestration import automation
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.data_versions import automation_sensor, with_conditions
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.prune import weekly_removal
from selectit_dagster.orchestration.resources import ExperimentResource
from selectit_dagster.orchestration.run_cleanup import closing_sensors
from selectit_dagster.orchestration.run_launcher import watched_executor
from selectit_dagster.orchestration.source_sensor import source_sensor
from selectit_dagster.orchestration.version_change import version_job

DEFAULT_EXPERIMENT = Path(__file__).resolve().parent / "experiments" / "default.yaml"


def experiment_files(given: Iterable[str | Path]) -> list[Path]:
    """Return the experiment files that are named, those of a folder in its place.

    Raises
    ------
    UserError
        When a folder holds none.
    """
    found: list[Path] = []
    for path in map(Path, given):
        files = [path]
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix in (".yaml", ".yml"))
            if not files:
                raise UserError(f"{path} holds no experiment file", hint="put a .yaml file there")
        found += [file.resolve() for file in files]
    return list(dict.fromkeys(found))


def build_defs(
    *,
    experiment_file: Path,
    home: Path | str | None = None,
    key_prefix: str | None = None,
    mlflow_uri: str = "",
    mlflow_ui_url: str = "",
    dagster_url: str = "",
) -> dg.Definitions:
    """Return the definitions of one experiment in one home.

    Parameters
    ----------
    experiment_file:
        The YAML that says the run.
    home:
        Where artefacts lie; ``$SELECTIT_HOME`` or ``./.selectit`` when None.
    key_prefix:
        Put before every asset key (``team`` or ``team/alpaca``) and into every other name;
        the experiment's name when None.
    mlflow_uri, mlflow_ui_url, dagster_url:
        Tracking URI and the pages' addresses; empty for the experiment's and the home's own.

    Raises
    ------
    UserError
        When the experiment file is wrong.
    """
    path = Path(experiment_file).resolve()
    experiment = load_experiment(path)
    pipeline = Pipeline(experiment, Home(home_root(home), experiment.name))
    access = Access.of(experiment, key_prefix)
    resource = ExperimentResource(
        str(path), str(pipeline.home.root), mlflow_uri, mlflow_ui_url, dagster_url
    )
    assets = with_conditions(build_assets(pipeline, access), access)
    ours = frozenset(key for a in assets if isinstance(a, dg.AssetsDefinition) for key in a.keys)
    jobs = automation.jobs(pipeline, access)
    return dg.Definitions(
        assets=assets,
        jobs=[*jobs.values(), version_job(pipeline, access)],
        schedules=automation.schedules(pipeline, access, jobs["reselect"]),
        sensors=[
            source_sensor(pipeline, access, jobs["reselect"]),
            automation_sensor(assets, access),
            *closing_sensors(access, resource, ours),
        ],
        resources={access.resource: resource},
    )


def build_location(files: list[Path], home: Path | str | None = None) -> dg.Definitions:
    """Return the definitions of several experiments in one home, side by side.

    One that cannot be loaded does not take the others down: an asset of its file's name says
    what is wrong with it.

    Raises
    ------
    UserError
        When there is one alone and it is wrong, or two have one name.
    """
    root = home_root(home)
    parts: list[dg.Definitions] = []
    names: dict[tuple[str, ...], Path] = {}
    folders: dict[str, Path] = {}
    for file in files:
        try:
            experiment = load_experiment(file)
            access = Access.of(experiment)
            folders[access.experiment] = Home(root, experiment.name).folder
            parts.append(build_defs(experiment_file=file, home=root))
        except UserError as error:
            if len(files) == 1:
                raise
            parts.append(dg.Definitions(assets=[_broken(file, error)]))
            continue
        if (other := names.setdefault(access.prefix, file)) != file:
            raise UserError(
                f"{other} and {file} would have the same assets, {access.experiment}/...",
                hint="give one of the experiments another name",
            )
    return dg.Definitions.merge(
        *parts, weekly_removal(), dg.Definitions(executor=watched_executor(root, folders))
    )


def _broken(file: Path, error: UserError) -> dg.AssetSpec:
    return dg.AssetSpec(
        [key_part(file.stem), "cannot_be_loaded"],
        description=f"`{file}` cannot be loaded:\n\n```\n{error}\n```\n\nMend it, then *Reload*.",
        group_name="cannot_be_loaded",
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of this process's experiments and home."""
    given = os.environ.get("SELECTIT_EXPERIMENT")
    return build_location(
        experiment_files(given.split(os.pathsep) if given else [DEFAULT_EXPERIMENT])
    )
