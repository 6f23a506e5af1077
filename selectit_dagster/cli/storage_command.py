"""``selectit storage``: fetch what is valid in storage into this home."""

from __future__ import annotations

from pathlib import Path

import click

from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment
from selectit_dagster.errors import UserError
from selectit_dagster.progress import Reporter


@click.group("storage")
def storage_group() -> None:
    """Look after the artefacts that an experiment has in storage (storage.url).

    \b
    Example:
      selectit storage fetch my.yaml
    """  # noqa: D301


@storage_group.command("fetch")
@EXPERIMENT
@HOME
def fetch_command(experiment: Path | None, home: Path | None) -> None:
    """Fetch every artefact that is valid now into the home; work that is only here is kept.

    \b
    Example:
      selectit storage fetch my.yaml --home /data/selectit
    """  # noqa: D301
    from selectit_dagster.orchestration.remote_sync import bring

    store = open_experiment(experiment, home).store
    if store is None:
        raise UserError(
            "this experiment has no storage place",
            hint="set storage.url in the experiment file, or $SELECTIT_STORAGE",
        )
    for folder in store.folders():
        name = folder.relative_to(store.home.folder).as_posix()
        click.echo(f"{bring(store, folder, Reporter(f'fetching {name}', 'MB')):8} {name}")
