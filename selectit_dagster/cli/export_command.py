"""``selectit export``: a selected dataset, or the scores of all records, for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from selectit_dagster.cli.checkpoint_commands import must_be_folder
from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment

_TRAINERS = ("llama-factory", "axolotl", "trl", "parquet")


@click.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(_TRAINERS), required=True, help="The trainer.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Its folder.")
@click.option("--name", help="Name of the set there [the arm's].")
def export_command(folder: Path, to: str, output: Path, name: str | None) -> None:
    """Write a selected dataset in the form that a trainer takes.

    \b
    Examples:
      selectit export .selectit/experiments/miniature/selected/selectit --to trl -o data/
      selectit export selected/selectit --to llama-factory -o LLaMA-Factory/data --name best
    """  # noqa: D301
    from selectit_dagster.selection.export import export

    must_be_folder(folder)
    for path in export(folder, to, output, name):
        click.echo(path)


@click.command("scores")
@EXPERIMENT
@HOME
@click.option(
    "-o", "--output", default="scores.parquet", type=click.Path(path_type=Path), show_default=True
)
def scores_command(experiment: Path | None, home: Path | None, output: Path) -> None:
    """Write the scores of every level and arm for all records, chosen or not.

    \b
    Example:
      selectit scores experiment.yaml -o scores.parquet
    """  # noqa: D301
    from selectit_dagster.artefacts.manifest import read_manifest
    from selectit_dagster.selection.score_table import write_score_table

    pipeline = open_experiment(experiment, home)
    folders = {arm: pipeline.home.selected(arm) for arm in pipeline.arms}
    made = {arm: folder for arm, folder in folders.items() if read_manifest(folder)}
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = write_score_table(pipeline.home.ranking, made, output)
    click.echo(f"{rows:,} records -> {output}")
