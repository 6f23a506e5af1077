"""The ``selectit`` command. Thin: it reads options, calls one function, prints results.

Exit codes: 0 success, 2 the user's input is wrong (one message, no traceback), 1 our own
failure, 130 interrupted. Results go to stdout, progress and messages to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from selectit_dagster import __version__
from selectit_dagster.display import visible
from selectit_dagster.errors import TransientError, UserError, of_the_machine, redacted

EXAMPLE = Path(__file__).resolve().parents[1] / "experiments" / "default.yaml"
_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


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


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="selectit")
def cli() -> None:
    """Select instruction data with SelectIT, tune on it, and see whether it helped."""


@cli.command("run", cls=_LongHelp)
@click.argument("experiment", required=False, type=click.Path(path_type=Path))
@click.option("--home", type=click.Path(path_type=Path), help="Home [$SELECTIT_HOME, ./.selectit].")
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
    command = "make ui" if experiment is None and home is None else "selectit ui"
    command += f" {experiment}" if experiment is not None else ""
    command += f" --home {home}" if home is not None else ""
    click.echo(summary(outcome, command))


@cli.command("select")
@click.option("-i", "--input", "source", required=True, help="Dataset: file, folder or hub name.")
@click.option("-m", "--model", "models", required=True, multiple=True, help="Folder or hub name.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Output file.")
@click.option("--prompts", help="File with one rating prompt a line [nine are built in].")
@click.option("-k", "--num-prompts", default=5, show_default=True, help="K, rating prompts asked.")
@click.option("--num-ratings", default=5, show_default=True, help="R, ratings 1 to R.")
@click.option("--alpha", default=0.2, show_default=True, help="Weight of disagreement.")
@click.option("--share", type=float, help="Share to keep [0.2].")
@click.option("--count", type=int, help="Number of records to keep, instead of a share.")
@click.option(
    "--variant", type=click.Choice(["paper", "released-code"]), default="paper", show_default=True
)
@click.option("--theta", "thetas", multiple=True, type=float, help="Fusion weight, per model.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--max-length", type=int, help="Longest prompt in tokens [the model's context].")
@click.option(
    "--too-long",
    type=click.Choice(["reject", "truncate-response"]),
    default="reject",
    show_default=True,
)
@click.option("--max-reject-share", default=0.05, show_default=True, help="More stops the run.")
@click.option("--scores", type=click.Path(path_type=Path), help="Keep and reuse scores here.")
@click.option("--json", "as_json", is_flag=True, help="Last line of stdout is one JSON object.")
def select_command(**options: Any) -> None:  # noqa: ANN401 - one per click option
    """Select the best records of a dataset: no server, no experiment file.

    Records that cannot be used are in OUTPUT.rejected.jsonl, each with its reason.

    \b
    Examples:
      selectit select -i alpaca.json -m meta-llama/Llama-2-7b-hf -o selected.json
      selectit select -i data.jsonl -m ./small -m ./large -o best.jsonl --count 1000
      selectit select -i data.json -m ./model -o out.json --scores scores/ --share 0.1
    """  # noqa: D301
    from selectit_dagster.cli.select import as_options, select_experiment, select_records

    thetas, paths = options["thetas"], options["models"]
    if thetas and len(thetas) != len(paths):
        raise UserError(
            f"{len(thetas)} --theta for {len(paths)} --model",
            hint="give --theta once per model, or not at all",
        )
    models = [
        {"path": path, "dtype": options["dtype"], "device": options["device"]} for path in paths
    ]
    for model, theta in zip(models, thetas, strict=False):
        model["theta"] = theta
    names = ("prompts", "num_prompts", "num_ratings", "alpha", "variant", "max_length", "too_long")
    rating = {name: options[name] for name in names}
    selection = {k: options[k] for k in ("share", "count") if options[k] is not None}
    with as_options():
        experiment = select_experiment(
            dataset={"path": options["source"], "max_reject_share": options["max_reject_share"]},
            models=models,
            rating=rating,
            selection=selection,
        )
        outcome = select_records(experiment, options["output"], options["scores"])
    for warning in outcome.warnings:
        click.echo(f"warning: {warning}", err=True)
    counts = ", ".join(f"{name} {count:,}" for name, count in outcome.counts.items())
    click.echo(f"{counts}; {outcome.seconds:.1f} s -> {outcome.output}", err=options["as_json"])
    if options["as_json"]:
        click.echo(json.dumps(outcome.as_json()))


@cli.command("ui")
@click.argument("experiments", nargs=-1, type=click.Path(path_type=Path))
@click.option("--home", type=click.Path(path_type=Path), help="Home [$SELECTIT_HOME, ./.selectit].")
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
    from selectit_dagster.orchestration.run import open_pipeline
    from selectit_dagster.orchestration.web_pages import serve

    files = experiment_files(experiments or [EXAMPLE])
    pipelines = [open_pipeline(file, home) for file in files]
    sys.exit(serve(files, pipelines[0].home.root, open_browser=open_browser))


@cli.command("report")
@click.argument("experiment", required=False, type=click.Path(path_type=Path))
@click.option("--home", type=click.Path(path_type=Path), help="Home [$SELECTIT_HOME, ./.selectit].")
def report_command(experiment: Path | None, home: Path | None) -> None:
    """Write the report of a finished run again and print its path.

    \b
    Examples:
      selectit report
      selectit report my.yaml --home /data/selectit
    """  # noqa: D301
    from selectit_dagster.orchestration.run import open_pipeline
    from selectit_dagster.progress import Silent

    pipeline = open_pipeline(experiment or EXAMPLE, home)
    pipeline.report().run(Silent())
    click.echo(str(pipeline.home.report / "report.html"))


def main() -> None:
    """Run the command and turn every outcome into an exit code and one message."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from selectit_dagster.cli import commands  # noqa: F401 - registers further commands

    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _message("interrupted; start the same command again to go on where it stopped")
        sys.exit(130)
    except UserError as error:
        _message(f"error: {error}")
        sys.exit(1 if getattr(error, "permanent", True) is False else 2)
    except TransientError as error:
        _message(f"error: {error}\n  hint: it may work later; the same command goes on from here")
        sys.exit(1)
    except Exception as error:
        if type(error).__name__ == "DagsterExecutionInterruptedError":
            _message("interrupted; start the same command again to go on where it stopped")
            sys.exit(130)
        if (lacking := of_the_machine(error)) is not None:
            _message(f"error: {lacking}")
            sys.exit(2)
        _message(f"selectit failed: {type(error).__name__}: {error}")
        if os.environ.get("SELECTIT_DEBUG"):
            traceback.print_exc()
        else:
            _message("  this is a fault of selectit; SELECTIT_DEBUG=1 shows where")
        sys.exit(1)


def _message(text: str) -> None:
    sys.stderr.write(visible(redacted(text)) + "\n")
