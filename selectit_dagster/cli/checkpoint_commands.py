"""``selectit merge`` and ``selectit chat``: a tuned checkpoint, merged or asked something."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from selectit_dagster.errors import UserError

_MUCH_ROUNDING = 0.05


@click.command("merge")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder.")
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


def must_be_folder(checkpoint: Path) -> None:
    """Refuse a path that is no folder."""
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is not a folder",
            hint="name a folder under checkpoints/ of the home, e.g. checkpoints/selectit/seed-1",
        )


@click.command("chat")
@click.argument("checkpoint", type=click.Path(path_type=Path))
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
    from selectit_dagster.tuning import checkpoint as engine

    must_be_folder(checkpoint)
    opened = engine.open_checkpoint(checkpoint)
    loaded = engine.load_checkpoint(opened.base, checkpoint)
    lines = [prompt] if prompt is not None else _typed()
    for line in lines:
        answer = engine.answer(
            loaded,
            line,
            template=opened.template,
            custom_template=opened.custom_template,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        click.echo(answer)


def _typed() -> Any:  # noqa: ANN401 - an iterator of lines
    """Yield the lines that a person types, with a prompt when it is a terminal."""
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
