"""``selectit export``, ``scores``, ``publish``, ``merge``, ``chat``: what was made, put to use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from selectit_dagster.cli.options import PATH, must_be_folder, on_experiment

if TYPE_CHECKING:
    from selectit_dagster.orchestration.pipeline import Pipeline

_TRAINERS = ("llama-factory", "axolotl", "trl", "parquet")
_MUCH_ROUNDING = 0.05


@click.command("export")
@click.argument("folder", type=PATH)
@click.option("--to", type=click.Choice(_TRAINERS), required=True, help="The trainer.")
@click.option("-o", "--output", required=True, type=PATH, help="Its folder.")
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
@on_experiment
@click.option("-o", "--output", default="scores.parquet", type=PATH, show_default=True)
def scores_command(pipeline: Pipeline, output: Path) -> None:
    """Write the scores of every level and arm for all records, chosen or not.

    \b
    Example:
      selectit scores experiment.yaml -o scores.parquet
    """  # noqa: D301
    from selectit_dagster.artefacts.manifest import read_manifest
    from selectit_dagster.selection.score_table import write_score_table

    folders = {arm: pipeline.home.selected(arm) for arm in pipeline.arms}
    made = {arm: folder for arm, folder in folders.items() if read_manifest(folder)}
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = write_score_table(pipeline.home.ranking, made, output)
    click.echo(f"{rows:,} records -> {output}")


@click.command("publish")
@click.argument("folder", type=PATH)
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


@click.command("merge")
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="New folder.")
def merge_command(checkpoint: Path, output: Path) -> None:
    """Write a checkpoint's base model with its adapter merged in, as safetensors.

    \b
    Example:
      selectit merge .selectit/experiments/miniature/checkpoints/selectit/seed-1 -o merged/
    """  # noqa: D301
    from selectit_dagster.tuning.checkpoint import merge

    must_be_folder(checkpoint)
    manifest = merge(None, checkpoint, output)
    dtype, rounding = manifest.details["dtype"], manifest.details["rounding"]
    click.echo(f"{manifest.counts['parameters']:,} parameters in {dtype} -> {output}")
    if rounding > _MUCH_ROUNDING:
        click.echo(
            f"rounding to {dtype} moved the weights by {rounding:.0%} of what training moved "
            "them; the adapter beside its base model keeps all of it",
            err=True,
        )


@click.command("chat")
@click.argument("checkpoint", type=PATH)
@click.option("-p", "--prompt", help="Answer this and end; without it, read lines until Ctrl-D.")
@click.option("--max-new-tokens", default=256, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0: the likeliest token.")
@click.option("--seed", default=1, show_default=True)
def chat_command(
    checkpoint: Path, prompt: str | None, max_new_tokens: int, temperature: float, seed: int
) -> None:
    """Ask a tuned checkpoint something, to try it.

    \b
    Examples:
      selectit chat CHECKPOINT -p "What is the opposite of hot?"
      selectit chat CHECKPOINT
    """  # noqa: D301
    from selectit_dagster.inference.engine import Engine
    from selectit_dagster.inference.generation import Decoding
    from selectit_dagster.tuning.checkpoint import ask, load_checkpoint, open_checkpoint

    must_be_folder(checkpoint)
    opened = open_checkpoint(checkpoint)
    engine = Engine(load_checkpoint(opened.base, checkpoint))
    decoding = Decoding(max_new_tokens, temperature=temperature)
    for line in _typed() if prompt is None else [prompt]:
        click.echo(ask(engine, opened, line, decoding, seed=seed))


def _typed() -> Iterator[str]:
    """Yield the lines that a person types, with a prompt when it is a terminal."""
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        if not (line := sys.stdin.readline()):
            return
        if line.strip():
            yield line.strip()
