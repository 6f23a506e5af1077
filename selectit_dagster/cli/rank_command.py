"""``selectit rank``: another ranking from the stored scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.overrides import Overrides, apply_overrides
from selectit_dagster.progress import Reporter


@click.command("rank")
@EXPERIMENT
@HOME
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
    pipeline = open_experiment(experiment, home)
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
