"""``selectit explain``: one record's distributions, scores and rank."""

from __future__ import annotations

import json
from pathlib import Path

import click

from selectit_dagster.cli.options import EXPERIMENT, HOME, open_experiment
from selectit_dagster.display import visible


@click.command("explain")
@click.argument("record_id")
@EXPERIMENT
@HOME
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
    from selectit_dagster.selection.explain import dropped, explain

    pipeline = open_experiment(experiment, home)
    if (why := dropped(record_id, pipeline.home.curated)) is not None:
        answer = {"record_id": record_id, **why}
        line = f"record {record_id} was dropped by curation ({why['step']}): {why['reason']}"
        click.echo(json.dumps(answer) if as_json else visible(line))
        return
    scores = tuple(
        (m.name, pipeline.home.scores(m.name)) for m in pipeline.experiment.scoring_models
    )
    rated = pipeline.rated_folder
    found = explain(record_id, pipeline.home.curated, pipeline.home.ranking, scores, rated)
    click.echo(json.dumps(found.as_dict()) if as_json else found.text())
