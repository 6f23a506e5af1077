"""``selectit_dagster.SelectItComponent``: the whole asset graph from a few lines of YAML.

For another Dagster project::

    type: selectit_dagster.SelectItComponent
    attributes:
      experiment: experiment.yaml     # beside this file
      home: .selectit                 # from the project's root
      key_prefix: instruction_data    # else the name of the folder

``dg scaffold defs selectit_dagster.SelectItComponent NAME`` writes it together with a short
experiment file to start from. Links lead to where ``dg dev`` and ``mlflow server`` serve by
themselves, unless ``tracking`` says another place::

    mlflow server --backend-store-uri sqlite:///.selectit/mlflow/mlflow.db
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dagster as dg
from dagster.components.component_scaffolding import scaffold_component
from pydantic import BaseModel, Field

from selectit_dagster.artefacts.files import write_text
from selectit_dagster.definitions import build_defs

EXPERIMENT_FILE = "experiment.yaml"
_STARTER = """\
# What is selected from what, by which models. `selectit run --help` shows every key.
name: {name}
description: The best fifth of our instruction data.

dataset:
  path: data.jsonl                # beside this file; or a hub name, owner/name
  license: unknown

scoring_models:                   # one or more; their scores are fused by parameter count
  - name: qwen2.5-0.5b
    path: Qwen/Qwen2.5-0.5B

selection:
  share: 0.2
  arms:
    - kind: selectit
    - kind: random
"""


class Tracking(dg.Model):
    """Where MLflow is, when the experiment file does not say it, and where links lead."""

    uri: str | None = Field(
        None, description="tracking URI; default: the experiment's, else sqlite in the home"
    )
    ui_url: str = Field(
        "http://127.0.0.1:5000", description="address under which a browser finds MLflow"
    )
    dagster_url: str = Field(
        "http://127.0.0.1:3000", description="address under which a browser finds this project"
    )


class ScaffoldParams(BaseModel):
    """What ``dg scaffold`` may be told."""

    experiment: str = Field(EXPERIMENT_FILE, description="experiment file, beside defs.yaml")
    key_prefix: str | None = Field(
        None, description="put before every asset key; default: the component's name"
    )


class SelectItScaffolder(dg.Scaffolder[ScaffoldParams]):
    """Writes ``defs.yaml`` and, where there is none yet, a short experiment file."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldParams]:
        """Return the model of the parameters."""
        return ScaffoldParams

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldParams]) -> None:
        """Write the files into the folder that was asked for."""
        params = request.params
        attributes: dict[str, Any] = {"experiment": params.experiment}
        if params.key_prefix:
            attributes["key_prefix"] = params.key_prefix
        scaffold_component(request, attributes)
        experiment = request.target_path / params.experiment
        if not experiment.exists():
            write_text(experiment, _STARTER.format(name=request.target_path.name))
        _ignore(request.project_root or Path.cwd())


def _ignore(root: Path) -> None:
    """Keep the home out of the project's repository."""
    file = root / ".gitignore"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if ".selectit/" not in lines:
        write_text(file, "\n".join([*lines, "# artefacts, Dagster and MLflow", ".selectit/", ""]))


@dg.scaffold_with(SelectItScaffolder)
class SelectItComponent(dg.Component, dg.Model, dg.Resolvable):
    """SelectIT over one experiment: read, curate, rate, rank, select, tune, evaluate, compare.

    Each scoring model, arm and training seed of the experiment file becomes part of the asset
    graph; without a tuning section the graph ends at the selected datasets and the report.
    """

    experiment: str = Field(description="experiment file, relative to this defs.yaml")
    home: str = Field(
        ".selectit",
        description="folder of artefacts and of the MLflow store, relative to the project's root",
    )
    key_prefix: str | None = Field(
        None, description="put before every asset key; default: the name of this folder"
    )
    tracking: Tracking = Field(Tracking(), description="MLflow, where it is not the home's")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of the experiment, as the project's own code location loads them.

        Raises
        ------
        UserError
            When the experiment file is missing or wrong.
        """
        return build_defs(
            experiment_file=(context.path / Path(self.experiment).expanduser()).resolve(),
            home=(context.project_root / Path(self.home).expanduser()).resolve(),
            key_prefix=self.key_prefix or context.path.name,
            mlflow_uri=self.tracking.uri or "",
            mlflow_ui_url=os.environ.get("SELECTIT_MLFLOW_UI") or self.tracking.ui_url,
            dagster_url=os.environ.get("SELECTIT_DAGSTER_UI") or self.tracking.dagster_url,
        )
