"""``selectit ui``: Dagster's and MLflow's pages on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from selectit_dagster.cli.options import EXAMPLE, HOME, open_experiment


@click.command("ui")
@click.argument("experiments", nargs=-1, type=click.Path(path_type=Path))
@HOME
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
def ui_command(experiments: tuple[Path, ...], home: Path | None, open_browser: bool) -> None:
    """Start Dagster's and MLflow's web pages on this machine; Ctrl-C ends both.

    Several EXPERIMENTS, or a folder of them, stand side by side.

    \b
    Examples:
      selectit ui
      selectit ui weekly.yaml monthly.yaml --home /data/selectit
      selectit ui experiments/
    """  # noqa: D301
    from selectit_dagster.definitions import experiment_files
    from selectit_dagster.orchestration.web_pages import serve

    files = experiment_files(experiments or [EXAMPLE])
    pipelines = [open_experiment(file, home) for file in files]
    sys.exit(serve(files, pipelines[0].home.root, open_browser=open_browser))
