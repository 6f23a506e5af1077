"""What several commands share: the experiment and the home as arguments, and opening them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from selectit_dagster.orchestration.pipeline import Pipeline

EXAMPLE = Path(__file__).resolve().parents[1] / "experiments" / "default.yaml"
HOME = click.option(
    "--home", type=click.Path(path_type=Path), help="Home [$SELECTIT_HOME, ./.selectit]."
)
EXPERIMENT = click.argument("experiment", required=False, type=click.Path(path_type=Path))


def open_experiment(experiment: Path | None, home: Path | None) -> Pipeline:
    """Return the pipeline of an experiment, the embedded default when None, in its home."""
    from selectit_dagster.orchestration.run import open_pipeline

    return open_pipeline(experiment or EXAMPLE, home)
