"""From an experiment and a home to the stages: which engine, which request, which folder.

Belongs here: all stages together, their order, and the report on them. Must not be here or in
``stages``: Dagster, MLflow, and any work of the engines. Importing this module is cheap; the
engines are imported when a stage is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.orchestration.plans import actual_seconds, kept_plan, plan_table
from selectit_dagster.orchestration.stages.data_stages import DataStages
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.stages.tuning_stages import TuningStages
from selectit_dagster.orchestration.stages.what_if import WhatIfs

if TYPE_CHECKING:
    from selectit_dagster.report.report import ReportRequest


class Pipeline(DataStages, WhatIfs, TuningStages):
    """All stages of one experiment in one home."""

    def phases(self) -> Iterator[list[Stage]]:
        """Yield the stages in order, those that one Dagster run makes together.

        A Dagster run has one partition key, so stages without partitions come together,
        then each arm, then each checkpoint with its evaluation, then what compares them.
        """
        yield from self._reported()
        yield [self.report()]

    def _reported(self) -> Iterator[list[Stage]]:
        """Yield the phases before the report."""
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

    def folders(self) -> list[tuple[str, Path]]:
        """Return the title and the folder of every stage that the report is about, in order."""
        stages = (stage for phase in self._reported() for stage in phase)
        # the questions belong to the benchmarks, and the production dataset is one of the arms'
        left_out = ("benchmark_questions", "production_dataset")
        return [(stage.title, stage.folder) for stage in stages if stage.asset not in left_out]

    def report_request(self) -> ReportRequest:
        """Return what the report is made of."""
        from selectit_dagster.report.report import ReportRequest

        made = kept_plan(self.home)
        return ReportRequest(
            self.experiment,
            self.home,
            stages=tuple(self.folders()),
            production_arm=self.production_arm,
            planned=tuple(plan_table(made, actual_seconds(self)) if made else ()),
        )

    def report(self) -> Stage:
        """Build the stage that writes the report."""
        from selectit_dagster.report import report as engine

        return self._stage(
            "report",
            self.home.report,
            engine.write_report,
            engine.report_fingerprint,
            self.report_request,
            unit="sections",
            inputs=[folder for _, folder in self.folders()],
        )
