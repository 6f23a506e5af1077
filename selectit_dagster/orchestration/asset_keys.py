"""Asset keys and every other name in Dagster: <experiment>/<asset>, groups, pools, run tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from selectit_dagster.experiment.section import key_part

if TYPE_CHECKING:
    from selectit_dagster.experiment import Experiment
    from selectit_dagster.orchestration.pipeline import Pipeline
    from selectit_dagster.orchestration.resources import ExperimentResource
    from selectit_dagster.orchestration.tracking import Tracker

RAW = "raw_dataset"
QUESTIONS = "benchmark_questions"
CURATED = "curated_dataset"
SCORES = "uncertainty_scores"
RANKING = "ranking"
SENSITIVITY = "sensitivity"
PRODUCTION = "production_dataset"
CHECKPOINTS = "lora_checkpoints"
EVALUATIONS = "benchmark_evaluations"
UNTUNED = "untuned_evaluation"
COMPARISON = "arm_comparison"
REPORT = "report"
# the arms' subsets have the name that the experiment gives them; homes of before call them this
FORMER_SELECTED = "selective_alpaca"

# groups, which Dagster sorts by name: these stand in the order of the pipeline
DATA, RATING, SELECTION = "data", "rating", "selection"
TUNING, EVALUATION, VERDICT = "tuning", "tuning_evaluation", "verdict"

# icons on the nodes
DATASET_KINDS = frozenset({"huggingface", "parquet"})
TABLE_KINDS = frozenset({"parquet", "python"})
MODEL_KINDS = frozenset({"pytorch", "huggingface"})
# one model in memory at a time, whichever experiment loads it
MODEL_POOL = "model_memory"
# on every run: of one experiment, only one at a time
EXPERIMENT_TAG = "selectit/experiment"
LOCATION = "selectit"


def experiments_of(run: dg.DagsterRun) -> list[str]:
    """Return the experiments that a run works on: those of its tag and of its assets' keys."""
    tag = run.tags.get(EXPERIMENT_TAG)
    found = [tag] if tag else []
    for key in sorted(run.asset_selection or ()):
        prefix = key.path[:-2] if key.path[-2:-1] == [SCORES] else key.path[:-1]
        found.append("/".join(prefix))
    return [name for name in dict.fromkeys(found) if name]


def scores_name(model: str) -> str:
    """Return the asset of one scoring model's ratings."""
    return f"{SCORES}/{model}"


@dataclass(frozen=True)
class Access:
    """How assets, jobs and sensors of one experiment find their own names and resources.

    Attributes
    ----------
    prefix:
        Parts put before every asset key: the experiment's name, or what a component was given.
        They also come before the names of groups, jobs, sensors and resources.
    owners:
        Owners of every asset.
    """

    prefix: tuple[str, ...]
    owners: tuple[str, ...] = ()

    @classmethod
    def of(cls, experiment: Experiment, key_prefix: str | None = None) -> Access:
        """Return the access for an experiment; ``key_prefix`` as a user writes it: ``team/a``."""
        parts = (key_prefix or experiment.name).split("/")
        return cls(tuple(key_part(p) for p in parts if p), experiment.dagster.owners)

    @property
    def experiment(self) -> str:
        """Value of the run tag that keeps the runs of one experiment apart."""
        return "/".join(self.prefix)

    @property
    def tags(self) -> dict[str, str]:
        """Tags of every run of this experiment."""
        return {EXPERIMENT_TAG: self.experiment}

    @property
    def resource(self) -> str:
        """Key of the resource that every asset needs."""
        return self.name("selectit_experiment")

    def name(self, name: str) -> str:
        """Return the name of a group, job, sensor, schedule or resource."""
        return "_".join((*self.prefix, name))

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of an asset, by a name of above or a stage's."""
        return dg.AssetKey([*self.prefix, *map(key_part, asset.split("/"))])

    def open(self, context: Any) -> tuple[Pipeline, Tracker]:  # noqa: ANN401 - any Dagster context
        """Return the pipeline as the experiment file stands now, and its tracker."""
        resource: ExperimentResource = getattr(context.resources, self.resource)
        return resource.open()
