"""``selectit sensitivity``: how much the choice depends on the settings."""

from __future__ import annotations

from pathlib import Path

import click

from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment
from selectit_dagster.progress import Silent


@click.command("sensitivity")
@EXPERIMENT
@HOME
def sensitivity_command(experiment: Path | None, home: Path | None) -> None:
    """Show how much the choice depends on α, K, single models and the variant.

    \b
    Example:
      selectit sensitivity
    """  # noqa: D301
    from selectit_dagster.selection.sensitivity import sentence

    pipeline = open_experiment(experiment, home)
    manifest = pipeline.sensitivity().run(Silent())
    click.echo(sentence(manifest.details))
    click.echo(str(pipeline.sensitivity().folder))
