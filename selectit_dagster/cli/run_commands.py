"""``selectit run``, ``plan``, ``report``, ``ui``, ``storage``: a whole experiment."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from selectit_dagster.cli.options import (
    EXAMPLE,
    EXPERIMENT,
    HOME,
    JSON,
    PATH,
    on_experiment,
    open_experiment,
)
from selectit_dagster.cli.tables import show_table
from selectit_dagster.errors import UserError
from selectit_dagster.progress import Reporter, Silent

if TYPE_CHECKING:
    from selectit_dagster.orchestration.pipeline import Pipeline


class _LongHelp(click.Command):
    """A command whose help ends with the complete example of an experiment file."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        try:
            text = EXAMPLE.read_text(encoding="utf-8").replace("\n\n", "\n \n")
        except OSError:
            text = "(experiments/default.yaml is not installed beside the package)"
        formatter.write_paragraph()
        formatter.write(f"A complete experiment file (experiments/default.yaml):\n\n{text}")


@click.command("run", cls=_LongHelp)
@EXPERIMENT
@HOME
@click.option("--upto", metavar="ASSET", help="Stop after this asset, e.g. ranking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def run_command(
    experiment: Path | None, home: Path | None, upto: str | None, as_json: bool
) -> None:
    """Run the chain that EXPERIMENT describes; without one, the embedded default.

    What is current is left alone; what was interrupted goes on where it stopped.

    \b
    Examples:
      selectit run
      selectit run my.yaml --home /data/selectit
      selectit run my.yaml --upto ranking
    """  # noqa: D301 - \b is click's mark for lines that must stay as they are
    from selectit_dagster.cli.run_summary import summary
    from selectit_dagster.launch.run import run_experiment

    outcome = run_experiment(experiment or EXAMPLE, home, upto=upto)
    if as_json:
        facts = {
            "materialised": outcome.materialised,
            "current": outcome.current,
            "fetched": outcome.fetched,
            "seconds": round(outcome.seconds, 3),
            "home": str(outcome.pipeline.home.root),
            "tracking_failures": outcome.tracking_failures,
        }
        click.echo(json.dumps(facts))
        return
    words = ["selectit", "ui", *([experiment] if experiment else [])]
    words += ["--home", home] if home is not None else []
    command = "make ui" if len(words) == 2 else shlex.join(map(str, words))
    click.echo(summary(outcome, command))


@click.command("plan")
@on_experiment
@click.option("--kept", is_flag=True, help="Show the plan that was made before, and what it took.")
@JSON
def plan_command(pipeline: Pipeline, kept: bool, as_json: bool) -> None:
    """Say what a run would rate, tune and evaluate, how long it takes here and what it costs.

    A short calibration runs the models on a sample. The plan is kept in the home, so that the
    report and MLflow show what the run took beside it.

    \b
    Examples:
      selectit plan experiment.yaml
      selectit plan experiment.yaml --kept
    """  # noqa: D301
    from selectit_dagster.orchestration import plans, run_plan

    made = plans.kept_plan(pipeline.home) if kept else run_plan.plan(pipeline)
    if made is None:
        raise UserError("no plan was made yet", hint="run `selectit plan` without --kept")
    if not kept:
        plans.keep_plan(made, pipeline.home)
    actual = plans.actual_seconds(pipeline) if kept else None
    if as_json:
        click.echo(json.dumps({**asdict(made), "seconds": made.seconds, "actual": actual}))
        return
    show_table(plans.plan_table(made, actual))


@click.command("report")
@on_experiment
def report_command(pipeline: Pipeline) -> None:
    """Write the report of a finished run again and print its path.

    \b
    Examples:
      selectit report
      selectit report my.yaml --home /data/selectit
    """  # noqa: D301
    pipeline.report().run(Silent())
    click.echo(str(pipeline.home.report / "report.html"))


@click.command("ui")
@click.argument("experiments", nargs=-1, type=PATH)
@HOME
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
def ui_command(experiments: tuple[Path, ...], home: Path | None, open_browser: bool) -> None:
    """Start Dagster's and MLflow's web pages on this machine; Ctrl-C ends both.

    Several EXPERIMENTS, or a folder of them, stand side by side.

    \b
    Examples:
      selectit ui
      selectit ui weekly.yaml monthly.yaml --home /data/selectit
      selectit ui experiments/
    """  # noqa: D301
    from selectit_dagster.definitions import experiment_files
    from selectit_dagster.launch.web_pages import serve

    files = experiment_files(experiments or [EXAMPLE])
    pipelines = [open_experiment(file, home) for file in files]
    sys.exit(serve(files, pipelines[0].home.root, open_browser=open_browser))


@click.group("storage")
def storage_group() -> None:
    """Look after the artefacts that an experiment has in storage (storage.url).

    \b
    Example:
      selectit storage fetch my.yaml
    """  # noqa: D301


@storage_group.command("fetch")
@on_experiment
def fetch_command(pipeline: Pipeline) -> None:
    """Fetch every artefact that is valid now into the home; work that is only here is kept.

    \b
    Example:
      selectit storage fetch my.yaml --home /data/selectit
    """  # noqa: D301
    from selectit_dagster.orchestration.remote_sync import bring

    if (store := pipeline.store) is None:
        raise UserError(
            "this experiment has no storage place",
            hint="set storage.url in the experiment file, or $SELECTIT_STORAGE",
        )
    for folder in store.folders():
        name = folder.relative_to(store.home.folder).as_posix()
        click.echo(f"{bring(store, folder, Reporter(f'fetching {name}', 'MB')):8} {name}")
