"""``selectit report``: the report of a finished run, written again."""

from __future__ import annotations

from pathlib import Path

import click

from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment
from selectit_dagster.progress import Silent


@click.command("report")
@EXPERIMENT
@HOME
def report_command(experiment: Path | None, home: Path | None) -> None:
    """Write the report of a finished run again and print its path.

    \b
    Examples:
      selectit report
      selectit report my.yaml --home /data/selectit
    """  # noqa: D301
    pipeline = open_experiment(experiment, home)
    pipeline.report().run(Silent())
    click.echo(str(pipeline.home.report / "report.html"))
