"""Further commands: rank, explain, doctor, merge, chat, publish."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.cli import storage  # noqa: F401 - registers its commands
from selectit_dagster.cli.main import EXAMPLE, cli
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.overrides import Overrides, apply_overrides
from selectit_dagster.progress import Reporter, Silent

_HOME = click.option(
    "--home", type=click.Path(path_type=Path), help="Home [$SELECTIT_HOME, ./.selectit]."
)
_LISTS = ("problems", "warnings", "devices")
_EXPERIMENT = click.argument("experiment", required=False, type=click.Path(path_type=Path))


def _pipeline(experiment: Path | None, home: Path | None) -> Pipeline:
    from selectit_dagster.orchestration.run import open_pipeline

    return open_pipeline(experiment or EXAMPLE, home)


@cli.command("rank")
@_EXPERIMENT
@_HOME
@click.option("--alpha", type=float, help="Weight of disagreement.")
@click.option("-k", "--num-prompts", type=int, help="K: the first K of the prompts scored.")
@click.option("--variant", type=click.Choice(["paper", "released-code"]))
@click.option("--ablation", type=click.Choice(["none", "sentence-r", "model-r"]))
@click.option("--theta", "thetas", multiple=True, metavar="MODEL=WEIGHT", help="Fusion weight.")
@click.option("--share", type=float, help="Share to keep.")
@click.option("--count", type=int, help="Number of records to keep, instead of a share.")
@click.option("--threshold", type=float, help="Lowest score to keep, instead of a share.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the subset here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rank_command(
    experiment: Path | None,
    home: Path | None,
    output: Path | None,
    as_json: bool,
    thetas: tuple[str, ...],
    **given: Any,  # noqa: ANN401 - the settings to change, one per click option
) -> None:
    """Rank again from the stored scores; no model is loaded and the home's ranking stays.

    \b
    Examples:
      selectit rank --alpha 0.5
      selectit rank my.yaml -k 3 --share 0.1 -o best.jsonl
      selectit rank my.yaml --theta small=1 --theta large=3 --threshold 2.5
    """  # noqa: D301
    pipeline = _pipeline(experiment, home)
    for model in pipeline.experiment.scoring_models:
        require_manifest(
            pipeline.home.scores(model.name), made_by=f"uncertainty_scores/{model.name}"
        )
    overrides = Overrides(**given, thetas=_weights(thetas))
    rating = apply_overrides(pipeline.experiment, overrides).rating
    name = sha256_json(overrides.given())[:12]
    again = Pipeline(pipeline.experiment, pipeline.home, at_home=True)
    ranking = again.ranking(
        overrides, folder=pipeline.home.folder / "rerankings" / name / "ranking"
    )
    ranked = ranking.run(Reporter("ranking", "records"))
    chosen = again.selected(
        "selectit", overrides, ranking=ranking.folder, folder=ranking.folder.parent / "selected"
    )
    selected = chosen.run(Reporter("selection", "records"))
    if output is not None:
        from selectit_dagster.cli.select import copy_selected

        copy_selected(chosen.folder, selected, output)
    change = _change(pipeline, chosen.folder)
    facts = {
        "alpha": rating.alpha,
        "num_prompts": rating.num_prompts,
        "variant": rating.variant,
        "ablation": rating.ablation,
        "theta": ranked.details["theta"],
        "ranked": ranked.counts["ranked"],
        "selected": selected.counts["selected"],
        "change": change,
        "folder": str(chosen.folder),
        "output": str(output) if output else None,
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        if value is not None:
            click.echo(f"{key:12} {value}")


def _weights(given: tuple[str, ...]) -> tuple[tuple[str, float], ...] | None:
    """Return the fusion weights of ``--theta MODEL=WEIGHT``."""
    found = {}
    for text in given:
        name, mark, weight = text.rpartition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            mark = ""
        if not mark:
            raise UserError(
                f"--theta {text!r} is no weight of a model",
                hint="write MODEL=WEIGHT, for instance --theta small=7e9",
            )
    return tuple(found.items()) or None


def _change(pipeline: Pipeline, new: Path) -> str | None:
    """Return what the new subset differs in from the home's own, where there is one."""
    from selectit_dagster.selection.change import compare_selections

    old = pipeline.home.selected("selectit")
    if not (old / "manifest.json").exists():
        return None
    return compare_selections(old, new).text()


@cli.command("explain")
@click.argument("record_id")
@click.argument("experiment", required=False, type=click.Path(path_type=Path))
@_HOME
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain_command(
    record_id: str, experiment: Path | None, home: Path | None, as_json: bool
) -> None:
    """Show a record's distributions, its scores at each level and its rank.

    \b
    Examples:
      selectit explain 89b9d99fa2ed
      selectit explain my-record my.yaml --home /data/selectit
    """  # noqa: D301
    from selectit_dagster.selection.explain import explain

    pipeline = _pipeline(experiment, home)
    scores = tuple(
        (m.name, pipeline.home.scores(m.name)) for m in pipeline.experiment.scoring_models
    )
    found = explain(record_id, pipeline.home.curated, pipeline.home.ranking, scores)
    click.echo(json.dumps(found.as_dict()) if as_json else found.text())


@cli.command("doctor")
@_EXPERIMENT
@_HOME
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor_command(experiment: Path | None, home: Path | None, as_json: bool) -> None:
    """Show what this machine has, which models load, and what would go wrong.

    \b
    Examples:
      selectit doctor
      selectit doctor my.yaml
    """  # noqa: D301
    from selectit_dagster.rating import doctor

    pipeline = _pipeline(experiment, home)
    parsed, root = pipeline.experiment, pipeline.home.root
    machine = {**doctor.machine_facts(root), "home": f"{root} (can be written)"}
    usable = True
    if pipeline.store is not None:
        usable, machine["storage"] = pipeline.store.state()
    _show("This machine", machine, as_json)
    models = []
    for model in parsed.scoring_models:
        models.append(doctor.model_facts(model, parsed.rating))
        _show(f"Model {model.name}", models[-1], as_json)
    if as_json:
        click.echo(json.dumps({"machine": machine, "models": models}, default=str))
    if not (usable and all(found["ok"] for found in models)):
        sys.exit(2)


def _show(title: str, facts: dict[str, Any], quietly: bool) -> None:
    """Print facts as aligned lines; to stderr when stdout is kept for JSON."""
    click.echo(title, err=quietly)
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        entries = value if isinstance(value, list) and name in _LISTS else [value]
        for entry in entries or ["none"]:
            click.echo(f"  {name.ljust(width)}  {_plain(entry)}", err=quietly)


def _plain(value: Any) -> str:  # noqa: ANN401 - any fact
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


@cli.command("merge")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder.")
def merge_command(checkpoint: Path, output: Path) -> None:
    """Write a checkpoint's base model with its adapter merged in, as safetensors.

    \b
    Example:
      selectit merge .selectit/experiments/miniature/checkpoints/selectit/seed-1 -o merged/
    """  # noqa: D301
    from selectit_dagster.tuning.checkpoint import merge

    _must_be_folder(checkpoint)
    manifest = merge(None, checkpoint, output)
    click.echo(f"{manifest.counts['parameters']:,} parameters -> {output}")


def _must_be_folder(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is not a folder",
            hint="name a folder under checkpoints/ of the home, e.g. checkpoints/selectit/seed-1",
        )


@cli.command("chat")
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

    _must_be_folder(checkpoint)
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


@cli.command("sensitivity")
@_EXPERIMENT
@_HOME
def sensitivity_command(experiment: Path | None, home: Path | None) -> None:
    """Show how much the choice depends on α, K, single models and the variant.

    \b
    Example:
      selectit sensitivity
    """  # noqa: D301
    from selectit_dagster.selection.sensitivity import sentence

    pipeline = _pipeline(experiment, home)
    manifest = pipeline.sensitivity().run(Silent())
    click.echo(sentence(manifest.details))
    click.echo(str(pipeline.sensitivity().folder))


@cli.command("publish")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--public", is_flag=True, help="Make a new repository public [private].")
def publish_command(folder: Path, name: str, public: bool) -> None:
    """Upload a selected dataset to the hub as NAME (owner/name); the token comes from $HF_TOKEN.

    \b
    Example:
      selectit publish .selectit/experiments/miniature/selected/selectit me/selective-alpaca
    """  # noqa: D301
    from selectit_dagster.selection.publish import publish

    _must_be_folder(folder)
    click.echo(publish(folder, name, private=not public))
