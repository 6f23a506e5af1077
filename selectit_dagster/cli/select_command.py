"""``selectit select``: the options of the selection alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click

from selectit_dagster.errors import UserError


@click.command("select")
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
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL[,URL]",
    help="vLLM or SGLang server that runs the model, per --model; several addresses share one "
    "queue, - is none. The key comes from $VLLM_API_KEY.",
)
@click.option("--server-model", "served", multiple=True, help="The model's name there, per server.")
@click.option("--server-kind", default="vllm", show_default=True, help="vllm or sglang.")
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
    """Select the best records of a dataset: no Dagster, no experiment file.

    Records that cannot be used are in OUTPUT.rejected.jsonl, each with its reason.

    \b
    Examples:
      selectit select -i alpaca.json -m meta-llama/Llama-2-7b-hf -o selected.json
      selectit select -i data.jsonl -m ./small -m ./large -o best.jsonl --count 1000
      selectit select -i data.json -m ./model -o out.json --scores scores/ --share 0.1
      selectit select -i data.json -m org/llama-70b -o out.json --server http://gpu-1:8000
    """  # noqa: D301
    from selectit_dagster.cli.select import as_options, select_experiment, select_records

    models = _models(options)
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


def _models(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the models as an experiment file would say them: weight and server per model."""
    paths = options["models"]
    for name in ("theta", "server"):
        if options[f"{name}s"] and len(options[f"{name}s"]) != len(paths):
            raise UserError(
                f"{len(options[f'{name}s'])} --{name} for {len(paths)} --model",
                hint=f"give --{name} once per model, or not at all",
            )
    served = iter(options["served"])
    models = []
    for path, theta, urls in itertools.zip_longest(paths, options["thetas"], options["servers"]):
        model = {"path": path, "dtype": options["dtype"], "device": options["device"]}
        if urls is not None and urls != "-":
            there = {"kind": options["server_kind"], "url": urls.split(",")}
            model["server"] = {**there, "model": next(served, None)}
        models.append({**model, "theta": theta})
    if next(served, None) is not None:
        raise UserError(
            "more --server-model than --server", hint="give it once per --server, or not at all"
        )
    return models
