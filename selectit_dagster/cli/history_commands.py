"""``selectit rank``, ``history``, ``diff``, ``rollback``, ``promote``, ``prune``: versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.cli.options import (
    EXPERIMENT,
    HOME,
    JSON,
    PATH,
    keys_of,
    on_experiment,
    open_experiment,
)
from selectit_dagster.cli.tables import megabytes, show_table
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import RatingSection, SelectionSection
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.overrides import Overrides, apply_overrides
from selectit_dagster.progress import Reporter

ARM = click.option("--arm", help="The arm [the one that is re-selected by itself].")
_WHY = click.option("--because", required=True, help="The reason; it is kept.")


def arm_of(pipeline: Pipeline, arm: str | None) -> str:
    """Return the arm that is meant; raises UserError when there is none of that name."""
    name = arm or pipeline.production_arm
    if name not in pipeline.arms:
        raise UserError(
            f"{name} is no arm of this experiment", hint=f"the arms are {', '.join(pipeline.arms)}"
        )
    return name


@click.command("rank")
@on_experiment
@keys_of(RatingSection, "alpha", "-k/num_prompts", "variant", "ablation", defaults=False)
@click.option("--theta", "thetas", multiple=True, metavar="MODEL=WEIGHT", help="Fusion weight.")
@keys_of(SelectionSection, "share", "count", "threshold", defaults=False)
@click.option("-o", "--output", type=PATH, help="Write the subset here.")
@JSON
def rank_command(
    pipeline: Pipeline,
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


@click.command("history")
@click.argument("arm", required=False)
@EXPERIMENT
@HOME
@JSON
def history_command(
    arm: str | None, experiment: Path | None, home: Path | None, as_json: bool
) -> None:
    """List the versions of the selections, newest first, and the what-if runs.

    \b
    Examples:
      selectit history
      selectit history my.yaml
      selectit history random-1 my.yaml
    """  # noqa: D301
    if experiment is None and arm is not None and arm.endswith((".yaml", ".yml")):
        experiment, arm = Path(arm), None
    pipeline = open_experiment(experiment, home)
    arms = [arm_of(pipeline, arm)] if arm else list(pipeline.arms)
    found = {name: pipeline.history(name) for name in arms}
    for history in found.values():
        history.adopt()
    tries = [facts for facts in pipeline.what_ifs() if facts["arm"] in arms]
    if as_json:
        versions = {name: history.rows() for name, history in found.items()}
        click.echo(json.dumps({"versions": versions, "what_ifs": tries}))
        return
    for name, history in found.items():
        if rows := history.rows():
            show_table(rows, title=f"{name}: {history.said()}")
    show_table(
        [
            {
                "what-if": facts["name"],
                "arm": facts["arm"],
                "made": str(facts["made_at"])[:16].replace("T", " "),
                "settings": ", ".join(f"{n} {v}" for n, v in facts["settings"].items()),
                "records": facts["selected"],
                "against the selection of then": facts["change"]["text"],
            }
            for facts in tries
        ],
        title="What-ifs (selectit promote NAME puts one into use)",
    )


@click.command("diff")
@click.argument("old")
@click.argument("new")
@on_experiment
@ARM
@click.option("-n", "--rows", default=20, show_default=True, help="Records to name of each kind.")
@JSON
def diff_command(
    pipeline: Pipeline, old: str, new: str, arm: str | None, rows: int, as_json: bool
) -> None:
    """Say what entered, left and moved from one version to another, and why.

    Each is a version (v3), `current`, or a what-if by its name.

    \b
    Examples:
      selectit diff v2 v3
      selectit diff v2 current my.yaml --arm longest -n 100
    """  # noqa: D301
    from selectit_dagster.selection.difference import compare_selections, moved_rows

    name = arm_of(pipeline, arm)
    folders = [_folder(pipeline, name, side) for side in (old, new)]
    change = compare_selections(*folders, examples=rows).summary()
    if as_json:
        click.echo(json.dumps(change))
        return
    click.echo(change["text"])
    show_table(change["settings"], title="Settings that differ")
    show_table(moved_rows(change), title=f"{old} → {new}")


def _folder(pipeline: Pipeline, arm: str, name: str) -> Path:
    """Return the folder of a version or of a what-if."""
    tried = pipeline.home.what_ifs / name / "selected" / arm
    if any(facts["name"] == name for facts in pipeline.what_ifs()):
        return tried
    history = pipeline.history(arm)
    history.adopt()
    return history.place(history.find(name))


@click.command("rollback")
@click.argument("version")
@on_experiment
@ARM
@_WHY
def rollback_command(pipeline: Pipeline, version: str, arm: str | None, because: str) -> None:
    """Put an earlier version of a selection into use; what was made from the other is stale.

    It stays until other data, scores or settings ask for another selection.

    \b
    Example:
      selectit rollback v2 my.yaml --because "v3 is all of one kind"
    """  # noqa: D301
    click.echo(_change(pipeline, arm_of(pipeline, arm), version, because))


@click.command("promote")
@click.argument("what_if")
@on_experiment
@_WHY
def promote_command(pipeline: Pipeline, what_if: str, because: str) -> None:
    """Put the selection of a what-if run into use, as the next version of its arm.

    \b
    Example:
      selectit rank my.yaml --alpha 0.5
      selectit promote 1f0c9a2b my.yaml --because "fewer lists of links"
    """  # noqa: D301
    pipeline.known_what_if(what_if)  # a version is for selectit rollback
    click.echo(_change(pipeline, pipeline.production_arm, what_if, because))


def _change(pipeline: Pipeline, arm: str, name: str, because: str) -> str:
    """Put a version into use and tell Dagster; return a sentence."""
    from selectit_dagster.orchestration.asset_keys import Access
    from selectit_dagster.orchestration.instance import open_instance
    from selectit_dagster.orchestration.version_change import change_version, events

    arm = change_version(pipeline, arm, name, because, "command")
    with open_instance(pipeline.home.dagster) as instance:
        for event in events(instance, pipeline, Access.of(pipeline.experiment), arm):
            instance.report_runless_asset_event(event)
    return pipeline.history(arm).said()


@click.command("prune")
@on_experiment
@click.option("--keep", type=int, help="Versions to keep of each selection [selection.keep].")
@click.option("--days", default=90.0, show_default=True, help="Age of runs and what-ifs to drop.")
@click.option("--drop", multiple=True, metavar="NAME", help="Another experiment, to drop wholly.")
@click.option("--yes", is_flag=True, help="Remove; without it nothing is removed.")
@JSON
def prune_command(
    pipeline: Pipeline,
    keep: int | None,
    days: float,
    drop: tuple[str, ...],
    yes: bool,
    as_json: bool,
) -> None:
    """List what may be removed with its bytes, and remove it when told to.

    The current version, versions that a checkpoint was made from and the newest run of every
    asset stay.

    \b
    Examples:
      selectit prune my.yaml
      selectit prune my.yaml --keep 5 --days 30 --yes
    """  # noqa: D301
    from selectit_dagster.orchestration.prune import removable

    found = removable(pipeline, keep=keep, days=days, experiments=drop)
    rows: list[dict[str, Any]] = [
        {"what": f.kind, "name": f.name, "why": f.why, "bytes": f.size} for f in found
    ]
    total = sum(f.size for f in found)
    if yes:
        for one in found:
            one.remove()
    if as_json:
        click.echo(json.dumps({"removed": yes, "bytes": total, "what": rows}))
        return
    show_table([{**row, "bytes": megabytes(row["bytes"])} for row in rows])
    verb = "removed" if yes else "may be removed (--yes removes it)"
    click.echo(f"{len(found):,} things, {megabytes(total)}, {verb}")
