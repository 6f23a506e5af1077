"""``selectit explain``, ``explore``, ``review``, ``sensitivity``: records and choices seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.cli.history_commands import ARM, arm_of
from selectit_dagster.cli.options import JSON, PATH, on_experiment
from selectit_dagster.display import visible
from selectit_dagster.progress import Reporter, Silent

if TYPE_CHECKING:
    from selectit_dagster.orchestration.pipeline import Pipeline


@click.command("explain")
@click.argument("record_id")
@on_experiment
@JSON
def explain_command(pipeline: Pipeline, record_id: str, as_json: bool) -> None:
    """Show a record's distributions, its scores, its rank, and why each arm took it or not.

    \b
    Examples:
      selectit explain 89b9d99fa2ed
      selectit explain my-record my.yaml --home /data/selectit
    """  # noqa: D301
    from selectit_dagster.selection.explain import dropped, explain

    home = pipeline.home
    if (why := dropped(record_id, home.curated)) is not None:
        answer = {"record_id": record_id, **why}
        line = f"record {record_id} was dropped by curation ({why['step']}): {why['reason']}"
        click.echo(json.dumps(answer) if as_json else visible(line))
        return
    scores = tuple((m.name, home.scores(m.name)) for m in pipeline.experiment.scoring_models)
    selected = {arm: home.selected(arm) for arm in pipeline.arms}
    rated = pipeline.rated_folder
    found = explain(record_id, home.curated, home.ranking, scores, rated, selected)
    click.echo(json.dumps(found.as_dict()) if as_json else found.text())


@click.command("explore")
@on_experiment
@ARM
def explore_command(pipeline: Pipeline, arm: str | None) -> None:
    """Write the page on which a selection is looked into, and print its path.

    It opens from the file, with no network: every record with its scores, found by text,
    filtered, sorted, compared with the version before; marks are saved as review.jsonl.

    \b
    Example:
      selectit explore my.yaml --arm longest
    """  # noqa: D301
    from selectit_dagster.report.explorer import EXPLORER, write_explorer

    name = arm_of(pipeline, arm)
    folder = pipeline.home.explorer(name)
    write_explorer(pipeline.explorer(name), folder, Reporter("explorer", "parts"))
    click.echo(str(folder / EXPLORER))


@click.group("review")
def review_group() -> None:
    """Let people judge records; selection.review makes their marks count.

    \b
    Example:
      selectit review sample my.yaml -n 100
    """  # noqa: D301


@review_group.command("sample")
@on_experiment
@click.option("-n", "--count", default=100, show_default=True, help="How many records.")
@click.option("--seed", default=1, show_default=True, help="Another seed draws others.")
@click.option("-o", "--output", type=PATH, help="Folder of the page.")
def sample_command(pipeline: Pipeline, count: int, seed: int, output: Path | None) -> None:
    """Draw records of every tenth of the ranking, to be judged blind, and print the page's path.

    The page shows texts and no score. Mark each keep, drop or unsure, save review.jsonl, and
    name it as selection.review; the report then says how far people and rater agree.

    \b
    Example:
      selectit review sample my.yaml -n 40
    """  # noqa: D301
    from selectit_dagster.report.explorer import EXPLORER, write_explorer
    from selectit_dagster.selection.review import draw_sample

    require_manifest(pipeline.home.ranking, made_by="ranking")
    only = tuple(draw_sample(pipeline.home.ranking, count, seed))
    folder = output or pipeline.home.folder / "review" / f"sample-{seed}"
    write_explorer(pipeline.explorer(pipeline.production_arm, only=only), folder)
    click.echo(str(folder / EXPLORER))


@click.command("sensitivity")
@on_experiment
def sensitivity_command(pipeline: Pipeline) -> None:
    """Show how much the choice depends on α, K, single models and the variant.

    \b
    Example:
      selectit sensitivity
    """  # noqa: D301
    from selectit_dagster.selection.sensitivity import sentence

    stage = pipeline.sensitivity()
    click.echo(sentence(stage.run(Silent()).details))
    click.echo(str(stage.folder))
