"""``selectit select``: the selection alone, without Dagster, MLflow or an experiment file."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from selectit_dagster.api import plain_settings
from selectit_dagster.artefacts.files import atomic_file
from selectit_dagster.artefacts.home import FlatHome, Home
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.cli.options import PATH, keys_of
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import (
    DatasetSection,
    Experiment,
    ModelReference,
    RatingSection,
    SelectionSection,
    parse_experiment,
)
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Reporter

# the keys of an experiment file that are options here
_RATING = ("prompts", "-k/num_prompts", "num_ratings", "alpha", "variant", "max_length", "too_long")
_SELECTION = ("share", "count")
_MODEL = ("dtype", "device")
_DATASET = (
    *("format", "layout", "split", "config", "turns", "other_roles", "limit", "max_reject_share"),
)
# errors speak of the keys of an experiment file, which who calls this does not have: those whose
# option has another name or form; the others' options are their last parts
_RENAMED = {
    "`selectit run --help` shows a complete example with every key": (
        "`selectit select --help` shows every option"
    ),
    "dataset.path in the experiment": "--input",
    "dataset.path": "--input",
    "dataset.columns: {instruction: ..., response: ...}": (
        "--columns instruction=...,response=..."
    ),
    "dataset.other_roles: keep": "--other-roles keep",
    "rating.too_long: ": "--too-long ",
    "server.url": "--server",
    "server.model": "--server-model",
    "server.kind": "--server-kind",
}
_KEY = re.compile(r"\b(?:dataset|curation|scoring_models|rating|selection)\.([a-z_]+)")


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
@click.option("-o", "--output", required=True, type=PATH, help="Output file.")
@keys_of(RatingSection, *_RATING)
@keys_of(SelectionSection, *_SELECTION)
@click.option("--theta", "thetas", multiple=True, type=float, help="Fusion weight, per model.")
@keys_of(ModelReference, *_MODEL)
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
@keys_of(DatasetSection, *_DATASET)
@click.option(
    "--columns",
    help="Which columns hold the parts: instruction=question,response=meta.answer,system=persona.",
)
@click.option("--scores", type=PATH, help="Keep and reuse scores here.")
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
    with as_options():
        experiment = select_experiment(
            dataset=_dataset(options),
            models=_models(options),
            rating=_given(options, _RATING),
            selection=_given(options, _SELECTION),
        )
        outcome = select_records(experiment, options["output"], options["scores"])
    for kind in ("warning", "note"):
        for line in outcome[f"{kind}s"]:
            click.echo(f"{kind}: {line}", err=True)
    counts = ", ".join(f"{name} {count:,}" for name, count in outcome["counts"].items())
    click.echo(f"layout {outcome['layout']}", err=True)
    said = f"{counts}; {outcome['seconds']:.1f} s -> {outcome['output']}"
    click.echo(said, err=options["as_json"])
    if options["as_json"]:
        click.echo(json.dumps(outcome))


def _given(options: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return those of some keys that were given."""
    names = [key.rpartition("/")[2] for key in keys]
    return {name: options[name] for name in names if options[name] is not None}


def _dataset(options: dict[str, Any]) -> dict[str, Any]:
    """Return the dataset section; raises UserError when ``--columns`` is not part=column, ...."""
    section = {"path": list(options["sources"]), **_given(options, _DATASET)}
    if options["columns"]:
        pairs = [pair.partition("=") for pair in options["columns"].split(",")]
        if wrong := [part for part, equals, column in pairs if not (part and equals and column)]:
            raise UserError(
                f"--columns {options['columns']}: {wrong[0]!r} names no column",
                hint="write part=column, e.g. instruction=question,response=answer",
            )
        section["columns"] = {part.strip(): column.strip() for part, _, column in pairs}
    return section


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
        model = {"path": path, **_given(options, _MODEL)}
        if urls is not None and urls != "-":
            there = {"kind": options["server_kind"], "url": urls.split(",")}
            model["server"] = {**there, "model": next(served, None)}
        models.append({**model, "theta": theta})
    if next(served, None) is not None:
        raise UserError(
            "more --server-model than --server", hint="give it once per --server, or not at all"
        )
    return models


def select_experiment(
    *,
    dataset: dict[str, Any],
    models: list[dict[str, Any]],
    rating: dict[str, Any],
    selection: dict[str, Any],
) -> Experiment:
    """Return the experiment that the command line describes; raises UserError."""
    value = plain_settings(dataset, models, rating)
    value["selection"] = {**selection, "arms": [{"kind": "selectit"}]}
    return parse_experiment(value, source="command line", folder=Path.cwd())


def select_records(experiment: Experiment, output: Path, scores: Path | None) -> dict[str, Any]:
    """Rate, rank, write the chosen records to ``output``, and return what ``--json`` prints.

    ``scores`` keeps the stored distributions, so that another share or α costs seconds.

    Raises
    ------
    UserError
        For wrong input, before any model is loaded.
    """
    from selectit_dagster.selection.output_file import check_output_format, write_output

    started = time.monotonic()
    _check_output(output)
    with _work_folder(scores, output) as root:
        pipeline = Pipeline(experiment, FlatHome(root, "select"), at_home=True)
        with _named_rejects(pipeline.home, output):
            raw = _run(pipeline.raw())
            check_output_format(output, str(raw.details["source"]["format"]))
            curated = _run(pipeline.curated())
        scored = [_run(pipeline.scores(m.name)) for m in experiment.scoring_models]
        ranking = _run(pipeline.ranking())
        selected = _run(pipeline.selected("selectit"))
        write_output(pipeline.home.selected("selectit"), selected, output)
    prompts = sum(m.counts.get("scored", 0) for m in scored)
    busy = sum(float(m.details.get("seconds", 0.0)) for m in scored)
    counts = {
        "read": raw.counts["read"],
        "rejected": raw.counts["rejected"] + curated.counts["raw"] - curated.counts["kept"],
        "ranked": ranking.counts["ranked"],
        "too_long": ranking.counts.get("too_long", 0),
        "failed": ranking.counts.get("failed", 0),
        "selected": selected.counts["selected"],
    }
    warnings = [str(w) for m in [*scored, ranking] for w in m.details.get("warnings", [])]
    return {
        "counts": counts,
        "seconds": round(time.monotonic() - started, 3),
        "prompts_per_second": round(prompts / busy, 3) if busy else 0.0,
        "output": str(output),
        "warnings": [in_options(warning) for warning in warnings],
        "layout": str(raw.details.get("layout") or ""),
        "notes": [in_options(str(note)) for note in raw.details.get("notes", [])],
    }


@contextlib.contextmanager
def as_options() -> Iterator[None]:
    """Make errors from inside speak of this command's options instead of an experiment's keys."""
    try:
        yield
    except UserError as error:
        error.message, error.hint = in_options(error.message), in_options(error.hint)
        if found := _KEY.search(error.message + error.hint):
            error.hint += f" ({found[0]} is a key of an experiment file: see `selectit run --help`)"
        raise


def in_options(text: str) -> str:
    """Return ``text`` with the options of the command in place of an experiment's keys."""
    for key, option in _RENAMED.items():
        text = text.replace(key, option)
    known = {option for parameter in select_command.params for option in parameter.opts}

    def renamed(found: re.Match[str]) -> str:
        option = f"--{found[1].replace('_', '-')}"
        return option if option in known else found[0]

    return _KEY.sub(renamed, text)


@contextlib.contextmanager
def _named_rejects(home: Home, output: Path) -> Iterator[None]:
    """Leave the rejected records beside the output, however reading them ends.

    The folder that they are written to may be a temporary one, so a message that names it is
    made to name the copy.
    """
    from selectit_dagster.data.curation import DROPPED
    from selectit_dagster.data.ingest import REJECTED

    target = output.with_name(f"{output.name}.rejected.jsonl")
    files = [home.raw / REJECTED, home.curated / DROPPED]
    try:
        yield
    except UserError as error:
        for path in files:
            error.hint = error.hint.replace(str(path), str(target))
        raise
    finally:
        _join(files, target)


def _join(files: list[Path], target: Path) -> None:
    """Write what the files hold to one; no file when there is nothing."""
    found = [path for path in files if path.is_file() and path.stat().st_size]
    if not found:
        target.unlink(missing_ok=True)
        return
    with atomic_file(target) as writer:
        for path in found:
            with path.open("rb") as reader:
                shutil.copyfileobj(reader, writer, 1 << 20)


def _run(stage: Stage) -> Manifest:
    return stage.run(Reporter(stage.asset, stage.unit, interval=1.0))


def _check_output(output: Path) -> None:
    """Refuse an output that cannot be written, before hours of scoring."""
    from selectit_dagster.selection.output_file import output_format

    if output.is_dir():
        raise UserError(f"{output} is a folder", hint="name a file with -o")
    output_format(output)
    with contextlib.suppress(FileExistsError):
        probe = output.with_name(f".{output.name}.probe")
        with atomic_file(probe):
            pass
        probe.unlink()


@contextlib.contextmanager
def _work_folder(scores: Path | None, output: Path) -> Iterator[Path]:
    if scores is not None:
        scores.mkdir(parents=True, exist_ok=True)
        yield scores.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="selectit-") as folder:
        yield Path(folder)
