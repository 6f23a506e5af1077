"""``selectit explore`` and ``selectit review``: pages to look at records and to judge them."""

from __future__ import annotations

from pathlib import Path

import click

from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.cli.history_commands import arm_of
from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment
from selectit_dagster.progress import Reporter


@click.command("explore")
@EXPERIMENT
@HOME
@click.option("--arm", help="The arm [the one that is re-selected by itself].")
def explore_command(experiment: Path | None, home: Path | None, arm: str | None) -> None:
    """Write the page on which a selection is looked into, and print its path.

    It opens from the file, with no network: every record with its scores, found by text,
    filtered, sorted, compared with the version before; marks are saved as review.jsonl.

    \b
    Example:
      selectit explore my.yaml --arm longest
    """  # noqa: D301
    from selectit_dagster.report.explorer import EXPLORER, write_explorer

    pipeline = open_experiment(experiment, home)
    name = arm_of(pipeline, arm)
    folder = pipeline.home.explorer(name)
    write_explorer(pipeline.explorer(name), folder, Reporter("explorer", "parts"))
    click.echo(str(folder / EXPLORER))


@click.group("review")
def review_group() -> None:
    """Let people judge records; selection.review makes their marks count.

    \b
    Example:
      selectit review sample my.yaml -n 100
    """  # noqa: D301


@review_group.command("sample")
@EXPERIMENT
@HOME
@click.option("-n", "--count", default=100, show_default=True, help="How many records.")
@click.option("--seed", default=1, show_default=True, help="Another seed draws others.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the page.")
def sample_command(
    experiment: Path | None, home: Path | None, count: int, seed: int, output: Path | None
) -> None:
    """Draw records of every tenth of the ranking, to be judged blind, and print the page's path.

    The page shows texts and no score. Mark each keep, drop or unsure, save review.jsonl, and
    name it as selection.review; the report then says how far people and rater agree.

    \b
    Example:
      selectit review sample my.yaml -n 40
    """  # noqa: D301
    from selectit_dagster.report.explorer import EXPLORER, write_explorer
    from selectit_dagster.selection.review import draw_sample

    pipeline = open_experiment(experiment, home)
    require_manifest(pipeline.home.ranking, made_by="ranking")
    only = tuple(draw_sample(pipeline.home.ranking, count, seed))
    folder = output or pipeline.home.folder / "review" / f"sample-{seed}"
    write_explorer(pipeline.explorer(pipeline.production_arm, only=only), folder)
    click.echo(str(folder / EXPLORER))
