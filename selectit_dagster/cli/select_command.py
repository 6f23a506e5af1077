"""``selectit select``: the options of the selection alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click

from selectit_dagster.errors import UserError

_FORMATS = click.Choice(["auto", "json", "jsonl", "parquet", "csv", "datasets", "hub"])
_LAYOUTS = click.Choice(["auto", "alpaca", "sharegpt", "messages", "columns"])


def _dataset(options: dict[str, Any]) -> dict[str, Any]:
    """Return the dataset section that the options describe.

    Raises
    ------
    UserError
        When ``--columns`` is not part=column, part=column.
    """
    section: dict[str, Any] = {
        "path": list(options["sources"]),
        "format": options["file_format"],
        **{
            name: options[name]
            for name in ("layout", "turns", "other_roles", "max_reject_share", "limit")
        },
    }
    section |= {n: options[n] for n in ("split", "config") if options[n] is not None}
    if options["columns"]:
        pairs = [pair.partition("=") for pair in options["columns"].split(",")]
        if wrong := [part for part, equals, column in pairs if not (part and equals and column)]:
            raise UserError(
                f"--columns {options['columns']}: {wrong[0]!r} names no column",
                hint="write part=column, e.g. instruction=question,response=answer",
            )
        section["columns"] = {part.strip(): column.strip() for part, _, column in pairs}
    return section


@click.command("select")
@click.option(
    "-i",
    "--input",
    "sources",
    required=True,
    multiple=True,
    help="Dataset: file, folder, pattern or hub name; several are read one after the other.",
)
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
@click.option("--format", "file_format", type=_FORMATS, default="auto", show_default=True)
@click.option("--layout", type=_LAYOUTS, default="auto", show_default=True)
@click.option(
    "--columns",
    help="Which columns hold the parts: instruction=question,response=meta.answer,system=persona.",
)
@click.option("--split", help="Split of a hub or saved dataset, or a slice of it [train].")
@click.option("--config", help="Configuration of a hub dataset.")
@click.option(
    "--turns",
    type=click.Choice(["first-turn", "last-turn", "whole"]),
    default="whole",
    show_default=True,
)
@click.option(
    "--other-roles", type=click.Choice(["reject", "keep"]), default="reject", show_default=True
)
@click.option("--limit", type=int, help="Read only the first N records.")
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
      selectit select -i 'shards/*.jsonl' -m ./model -o best.parquet --other-roles keep
    """  # noqa: D301
    from selectit_dagster.cli.select import as_options, select_experiment, select_records

    models = _models(options)
    names = ("prompts", "num_prompts", "num_ratings", "alpha", "variant", "max_length", "too_long")
    rating = {name: options[name] for name in names}
    selection = {k: options[k] for k in ("share", "count") if options[k] is not None}
    with as_options():
        experiment = select_experiment(
            dataset=_dataset(options),
            models=models,
            rating=rating,
            selection=selection,
        )
        outcome = select_records(experiment, options["output"], options["scores"])
    for warning in outcome.warnings:
        click.echo(f"warning: {warning}", err=True)
    for note in outcome.notes:
        click.echo(f"note: {note}", err=True)
    counts = ", ".join(f"{name} {count:,}" for name, count in outcome.counts.items())
    click.echo(f"layout {outcome.layout}", err=True)
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
