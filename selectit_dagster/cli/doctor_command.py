"""``selectit doctor``: what this machine has, and which models load."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from selectit_dagster.cli.options import JSON, on_experiment
from selectit_dagster.cli.tables import table_text
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import TuningSection

if TYPE_CHECKING:
    from selectit_dagster.orchestration.pipeline import Pipeline

_LISTS = ("problems", "warnings", "devices")


@click.command("doctor")
@on_experiment
@JSON
@click.option("--plan", "with_plan", is_flag=True, help="Also what `selectit plan` says.")
def doctor_command(pipeline: Pipeline, as_json: bool, with_plan: bool) -> None:
    """Show what this machine has, which models load, and what would go wrong.

    \b
    Examples:
      selectit doctor
      selectit doctor my.yaml
    """  # noqa: D301
    from selectit_dagster.rating import doctor

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
    tuning = _tuning(parsed.tuning) if parsed.tuning is not None else {"ok": True}
    if parsed.tuning is not None:
        _show("Tuning", tuning, as_json)
    if with_plan:
        from selectit_dagster.orchestration.plans import plan_table
        from selectit_dagster.orchestration.run_plan import plan

        click.echo(table_text(plan_table(plan(pipeline)), "Plan"), err=as_json)
    if as_json:
        facts = {"machine": machine, "models": models, "tuning": tuning}
        click.echo(json.dumps(facts, default=str))
    if not (usable and all(found["ok"] for found in (*models, tuning))):
        sys.exit(2)


def _tuning(tuning: TuningSection) -> dict[str, Any]:
    """Try the tuning's adapter on its base model, without weights."""
    from selectit_dagster.tuning.adapters import tuning_facts

    try:
        return {"ok": True, "problems": [], **tuning_facts(tuning)}
    except UserError as error:
        return {"ok": False, "problems": [str(error)], "path": tuning.base_model.path}


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
