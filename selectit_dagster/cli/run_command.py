"""``selectit run``: the chain that an experiment describes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from selectit_dagster.cli.options import EXAMPLE, EXPERIMENT, HOME


def _example_text() -> str:
    """Return the complete commented example, indented so that click keeps its lines."""
    try:
        text = EXAMPLE.read_text(encoding="utf-8")
    except OSError:
        return "(experiments/default.yaml is not installed beside the package)"
    return "\b\n" + text.replace("\n\n", "\n \n")


class _LongHelp(click.Command):
    """A command whose help ends with the complete example of an experiment file."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write("A complete experiment file (experiments/default.yaml):\n\n")
        formatter.write(_example_text().removeprefix("\b\n"))


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
    from selectit_dagster.orchestration.run import run_experiment

    path = experiment or EXAMPLE
    outcome = run_experiment(path, home, upto=upto)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "materialised": outcome.materialised,
                    "current": outcome.current,
                    "fetched": outcome.fetched,
                    "seconds": round(outcome.seconds, 3),
                    "home": str(outcome.pipeline.home.root),
                    "tracking_failures": outcome.tracking_failures,
                }
            )
        )
        return
    words = ["selectit", "ui", *([experiment] if experiment else [])]
    words += ["--home", home] if home is not None else []
    command = "make ui" if len(words) == 2 else shlex.join(map(str, words))
    click.echo(summary(outcome, command))
