"""What several commands share: the experiment in its home, ``--json``, and folders as arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    from selectit_dagster.orchestration.pipeline import Pipeline

EXAMPLE = Path(__file__).resolve().parents[1] / "experiments" / "default.yaml"
PATH = click.Path(path_type=Path)
HOME = click.option("--home", type=PATH, help="Home [$SELECTIT_HOME, ./.selectit].")
EXPERIMENT = click.argument("experiment", required=False, type=PATH)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def open_experiment(experiment: Path | None, home: Path | None) -> Pipeline:
    """Return the pipeline of an experiment, the embedded default when None, in its home."""
    from selectit_dagster.launch.preflight import open_pipeline

    return open_pipeline(experiment or EXAMPLE, home)


def on_experiment(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command EXPERIMENT and --home; it gets their pipeline as its first argument."""

    @EXPERIMENT
    @HOME
    @functools.wraps(command)
    def opened(experiment: Path | None, home: Path | None, **given: Any) -> None:  # noqa: ANN401
        command(open_experiment(experiment, home), **given)

    return opened


def must_be_folder(checkpoint: Path) -> None:
    """Refuse a path that is no folder."""
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is not a folder",
            hint="name a folder under checkpoints/ of the home, e.g. checkpoints/selectit/seed-1",
        )
