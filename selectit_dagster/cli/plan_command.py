"""``selectit plan``: tokens, time and money of a run, before it and beside what it took."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment


@click.command("plan")
@EXPERIMENT
@HOME
@click.option("--kept", is_flag=True, help="Show the plan that was made before, and what it took.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan_command(experiment: Path | None, home: Path | None, kept: bool, as_json: bool) -> None:
    """Say what a run would rate, tune and evaluate, how long it takes here and what it costs.

    A short calibration runs the models on a sample. The plan is kept in the home, so that the
    report and MLflow show what the run took beside it.

    \b
    Examples:
      selectit plan experiment.yaml
      selectit plan experiment.yaml --kept
    """  # noqa: D301
    from selectit_dagster.errors import UserError
    from selectit_dagster.orchestration import run_plan

    pipeline = open_experiment(experiment, home)
    made = run_plan.kept_plan(pipeline.home) if kept else run_plan.plan(pipeline)
    if made is None:
        raise UserError("no plan was made yet", hint="run `selectit plan` without --kept")
    if not kept:
        run_plan.keep_plan(made, pipeline.home)
    actual = run_plan.actual_seconds(pipeline) if kept else None
    if as_json:
        click.echo(json.dumps({**asdict(made), "seconds": made.seconds, "actual": actual}))
        return
    for line in run_plan.plan_lines(made, actual):
        click.echo(line)
