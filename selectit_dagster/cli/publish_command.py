"""``selectit publish``: a selected dataset, uploaded to the hub."""

from __future__ import annotations

from pathlib import Path

import click

from selectit_dagster.cli.checkpoint_commands import must_be_folder


@click.command("publish")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--public", is_flag=True, help="Make a new repository public [private].")
@click.option(
    "--scores",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Publish the scores of all records too, as `selectit scores` wrote them.",
)
def publish_command(folder: Path, name: str, public: bool, scores: Path | None) -> None:
    """Upload a selected dataset to the hub as NAME (owner/name); the token comes from $HF_TOKEN.

    \b
    Example:
      selectit publish .selectit/experiments/miniature/selected/selectit me/selective-alpaca
    """  # noqa: D301
    from selectit_dagster.selection.publish import publish

    must_be_folder(folder)
    click.echo(publish(folder, name, private=not public, scores=scores))
