"""The whole experiment: its sections, and the rules between them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from selectit_dagster.experiment.dataset_section import CurationSection, DatasetSection
from selectit_dagster.experiment.infrastructure import (
    BudgetSection,
    CostSection,
    DagsterSection,
    ScheduleSection,
    StorageSection,
    TrackingSection,
)
from selectit_dagster.experiment.rating_section import RatingSection, RaySection, ScoringModel
from selectit_dagster.experiment.section import Name, Section, key_part
from selectit_dagster.experiment.selection_section import SelectionSection
from selectit_dagster.experiment.tuning_section import Benchmark, ComparisonSection, TuningSection


class Experiment(Section):
    """A whole run, from the raw dataset to the comparison of the arms."""

    name: Name = Field(description="name of the experiment: folder and MLflow experiment")
    description: str = Field("", description="what it is for, in the report")
    dataset: DatasetSection
    curation: CurationSection = Field(CurationSection())
    scoring_models: tuple[ScoringModel, ...] = Field(min_length=1)
    rating: RatingSection = Field(RatingSection())
    selection: SelectionSection = Field(default_factory=SelectionSection)
    tuning: TuningSection | None = Field(None, description="leave out to stop at the selection")
    benchmarks: tuple[Benchmark, ...] = Field(())
    comparison: ComparisonSection = Field(ComparisonSection())
    tracking: TrackingSection = Field(TrackingSection())
    storage: StorageSection = Field(StorageSection())
    cost: CostSection = Field(CostSection())
    budget: BudgetSection = Field(BudgetSection())
    ray: RaySection = Field(RaySection(), description="for engine: ray")
    schedule: ScheduleSection = Field(ScheduleSection())
    dagster: DagsterSection = Field(DagsterSection())

    @property
    def budget_seconds(self) -> float | None:
        """How long scoring may take, None without a budget."""
        limits = [] if self.budget.hours is None else [self.budget.hours]
        if self.budget.money is not None and self.cost.per_hour is not None:
            limits.append(self.budget.money / self.cost.per_hour)
        return 3600 * min(limits) if limits else None

    @model_validator(mode="after")
    def _sections_agree(self) -> Experiment:
        if self.budget.money is not None and self.cost.per_hour is None:
            raise ValueError("budget.money needs cost.per_hour, the price of an hour")
        names = _distinct("scoring_models", self.scoring_models)
        _distinct("benchmarks", self.benchmarks)
        keys = [key_part(name) for name in names]
        if twins := [name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1]:
            raise ValueError(
                f"scoring_models: {' and '.join(twins)} give one asset key, "
                f"uncertainty_scores/{key_part(twins[0])}; rename one"
            )
        for arm in self.selection.arms:
            try:
                arm.check(tuple(names), self.rating.num_prompts)
                self._require_weights(arm)
            except ValueError as error:
                raise ValueError(f"selection.arms: {error}") from error
        if unknown := sorted(set(self.ray.models) - set(names)):
            raise ValueError(
                f"ray.models: {unknown[0]!r} is not a scoring model, those are {names}"
            )
        if self.tuning is not None and not self.benchmarks:
            raise ValueError("tuning without benchmarks: name at least one benchmark")
        return self

    def _require_weights(self, arm: Any) -> None:  # noqa: ANN401 - an arm, whose module is not here
        """Refuse an arm that would load the weights of a model behind a server."""
        own = getattr(arm, "model", None)
        if not arm.runs_model or not isinstance(own, str | None):
            return
        name = own or self.scoring_models[-1].name
        if any(model.name == name and model.server is not None for model in self.scoring_models):
            raise ValueError(
                f"arm {arm.name} runs its model in this process, but {name} is behind a server: "
                "give the arm a model of its own, as model: {path: ...}"
            )


def _distinct(key: str, entries: tuple[ScoringModel, ...] | tuple[Benchmark, ...]) -> list[str]:
    """Return the names of a list's entries; raises ValueError when one occurs twice."""
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise ValueError(f"{key}: each name may occur once, found {names}")
    return names
