"""``selectit storage``: fetch everything, check what is stored, remove what is replaced."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import click

from selectit_dagster.cli.main import EXAMPLE, cli
from selectit_dagster.errors import UserError
from selectit_dagster.progress import Reporter
from selectit_dagster.storage.store import ArtefactStore

_HOME = click.option(
    "--home", type=click.Path(path_type=Path), help="Home [$SELECTIT_HOME, ./.selectit]."
)
_EXPERIMENT = click.argument("experiment", required=False, type=click.Path(path_type=Path))


@cli.group("storage")
def storage_group() -> None:
    """Look after the artefacts that an experiment has in storage (storage.url).

    \b
    Examples:
      selectit storage fetch my.yaml
      selectit storage check my.yaml --hashes
      selectit storage gc my.yaml --older-than 30 --delete
    """  # noqa: D301


def _store(experiment: Path | None, home: Path | None) -> ArtefactStore:
    from selectit_dagster.orchestration.run import open_pipeline

    store = open_pipeline(experiment or EXAMPLE, home).store
    if store is None:
        raise UserError(
            "this experiment has no storage place",
            hint="set storage.url in the experiment file, or $SELECTIT_STORAGE",
        )
    return store


@storage_group.command("fetch")
@_EXPERIMENT
@_HOME
def fetch_command(experiment: Path | None, home: Path | None) -> None:
    """Fetch every artefact that is valid now into the home; work that is only here is kept.

    \b
    Example:
      selectit storage fetch my.yaml --home /data/selectit
    """  # noqa: D301
    from selectit_dagster.orchestration.remote_sync import bring
    from selectit_dagster.storage.maintenance import inventory

    store = _store(experiment, home)
    root = store.stage(store.home.folder)
    for artefact in inventory(store).artefacts:
        if artefact.is_head:
            name = str(Path(artefact.stage).relative_to(root))
            done = bring(store, store.home.folder / name, Reporter(f"fetching {name}", "MB"))
            click.echo(f"{done:8} {name}")


@storage_group.command("check")
@_EXPERIMENT
@_HOME
@click.option("--hashes", is_flag=True, help="Read every object and compare its SHA-256.")
@click.option("--repair", is_flag=True, help="Mend from this home; let the rest be made again.")
def check_command(experiment: Path | None, home: Path | None, hashes: bool, repair: bool) -> None:
    """Check that everything that a manifest names is in storage; exit 2 when it is not.

    \b
    Examples:
      selectit storage check my.yaml
      selectit storage check my.yaml --hashes --repair
    """  # noqa: D301
    from selectit_dagster.storage import maintenance

    store = _store(experiment, home)
    there = maintenance.inventory(store)
    found = list(maintenance.problems(store, there, hashes=hashes))
    heads = sum(artefact.is_head for artefact in there.artefacts)
    size = sum(entry.size for entry in there.entries.values())
    click.echo(
        f"{heads} artefacts, {len(there.artefacts) - heads} under their fingerprints, "
        f"{len(there.entries)} objects, {size / 1e6:,.1f} MB, {len(found)} problems"
    )
    for problem in found:
        click.echo(f"{store.remote.address(problem.key)} {problem.what}")
    if found and repair:
        mended, taken_out = maintenance.repair(store, found)
        for address in mended:
            click.echo(f"mended from this home: {address}")
        for address in taken_out:
            click.echo(f"taken out, the next run makes it: {address}")
    elif found:
        click.echo("hint: --repair mends what this home still has", err=True)
        sys.exit(2)


@storage_group.command("gc")
@_EXPERIMENT
@_HOME
@click.option("--older-than", default=30, show_default=True, help="Days since it was made.")
@click.option("--delete", is_flag=True, help="Remove it; without this it is only shown.")
def gc_command(experiment: Path | None, home: Path | None, older_than: int, delete: bool) -> None:
    """Show, or remove, replaced artefacts and content that nothing names.

    \b
    Examples:
      selectit storage gc my.yaml
      selectit storage gc my.yaml --older-than 7 --delete
    """  # noqa: D301
    from selectit_dagster.storage import maintenance

    store = _store(experiment, home)
    found = maintenance.garbage(store, dt.timedelta(days=older_than))
    for key in [*found.manifests, *found.objects]:
        click.echo(store.remote.address(key))
    what = f"{len(found.manifests)} manifests and {len(found.objects)} objects"
    if delete:
        maintenance.collect(store, found)
        click.echo(f"{what}, {found.bytes / 1e6:,.1f} MB: removed")
    else:
        click.echo(f"{what}, {found.bytes / 1e6:,.1f} MB: --delete removes them")
