"""From an experiment and a home to the stages: which engine, which request, which folder.

Belongs here: all stages together, and their order. Must not be here or in ``stages``:
Dagster, MLflow, and any work of the engines. Importing this module is cheap; the engines are
imported when a stage is built.
"""

from __future__ import annotations

from collections.abc import Iterator

from selectit_dagster.orchestration.stages.data_stages import DataStages
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.stages.tuning_stages import TuningStages
from selectit_dagster.orchestration.stages.what_if import WhatIfs


class Pipeline(DataStages, WhatIfs, TuningStages):
    """All stages of one experiment in one home."""

    def phases(self) -> Iterator[list[Stage]]:
        """Yield the stages in order, those that one Dagster run makes together.

        A Dagster run has one partition key, so stages without partitions come together,
        then each arm, then each checkpoint with its evaluation, then what compares them.
        """
        first = [self.raw()]
        if self.experiment.benchmarks:
            first.append(self.questions())
        first.append(self.curated())
        first += [self.scores(model.name) for model in self.experiment.scoring_models]
        yield [*first, self.ranking(), self.sensitivity()]
        for arm in self.arms:
            yield [self.selected(arm)]
        yield [self.production()]
        if self.experiment.tuning is not None:
            yield [self.evaluation(None)]
            for unit in self.units.values():
                yield [self.checkpoint(unit), self.evaluation(unit)]
            yield [self.comparison()]
        yield [self.report()]
