"""``selectit rank``: another ranking from the stored scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment
from selectit_dagster.errors import UserError
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
    """Rank again from the stored scores, beside the home's own ranking: a what-if.

    No model is loaded; the result is compared with the current selection, which stays.
    ``selectit promote`` puts it into use.

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
    arm = pipeline.production_arm
    tried = pipeline.what_if(arm, overrides)
    tried.run(Reporter("selection", "records"))
    name = tried.settings["what_if"]
    ranking = pipeline.home.what_ifs / name / "ranking"
    chosen = pipeline.home.what_ifs / name / "selected" / arm
    ranked = require_manifest(ranking, made_by="ranking")
    selected = require_manifest(chosen, made_by="selection")
    if output is not None:
        from selectit_dagster.selection.output_file import write_output

        write_output(chosen, selected, output)
    facts = {
        "alpha": rating.alpha,
        "num_prompts": rating.num_prompts,
        "variant": rating.variant,
        "ablation": rating.ablation,
        "theta": ranked.details["theta"],
        "ranked": ranked.counts["ranked"],
        "selected": selected.counts["selected"],
        "change": next(w for w in pipeline.what_ifs() if w["name"] == name)["change"]["text"],
        "what_if": name,
        "folder": str(chosen),
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
