"""Stages after the choice: checkpoints, their evaluations and the comparison."""

from __future__ import annotations

from pathlib import Path

from selectit_dagster.experiment import TuningSection
from selectit_dagster.orchestration.stages.stage import Stage, StageFactory, Unit


class TuningStages(StageFactory):
    """What is made of the subsets, and what is said of them."""

    @property
    def tuning(self) -> TuningSection:
        """The tuning section; only asked for where the experiment has one."""
        if self.experiment.tuning is None:
            raise ValueError("this experiment has no tuning section")
        return self.experiment.tuning

    def checkpoint(self, unit: Unit) -> Stage:
        """Build the stage that tunes the base model on one arm with one training seed."""
        from selectit_dagster.tuning import tune as engine

        tuning, subset = self.tuning, self.home.selected(unit.arm)
        return self._stage(
            "lora_checkpoints",
            self._checkpoint_folder(unit),
            engine.tune,
            engine.tuning_fingerprint,
            lambda: engine.TuningRequest(subset, tuning, unit.seed, self.experiment.ray),
            unit="steps",
            settings={"tuning": tuning.model_dump(mode="json"), "arm": unit.arm, "seed": unit.seed},
            partition=unit.key,
            inputs=[subset],
            work=engine.RESUME_POINTS,
        )

    def evaluation(self, unit: Unit | None) -> Stage:
        """Build the stage that evaluates one checkpoint; None is the untuned base model."""
        from selectit_dagster.evaluation import evaluate as engine

        tuning, benchmarks = self.tuning, self.experiment.benchmarks
        checkpoint = self._checkpoint_folder(unit) if unit else None
        whose: dict[str, str | int] = {"arm": "untuned", "group": "untuned"}
        if unit is not None:
            whose = {"arm": unit.arm, "seed": unit.seed, "group": unit.group}
        request = engine.EvaluationRequest(
            base=tuning.base_model,
            checkpoint=checkpoint,
            benchmarks=benchmarks,
            template=tuning.template,
            custom_template=tuning.custom_template,
            seed=unit.seed if unit else tuning.seeds[0],
        )
        return self._stage(
            "benchmark_evaluations" if unit else "untuned_evaluation",
            self._evaluation_folder(unit),
            engine.evaluate,
            engine.evaluation_fingerprint,
            lambda: request,
            unit="questions",
            settings={"benchmarks": [b.model_dump(mode="json") for b in benchmarks], **whose},
            partition=unit.key if unit else None,
            inputs=[checkpoint] if checkpoint else [],
            work=engine.ANSWERS,
            reuses=engine.shares_answers,
        )

    def _checkpoint_folder(self, unit: Unit) -> Path:
        return self.home.checkpoint(unit.arm, unit.seed)

    def _evaluation_folder(self, unit: Unit | None) -> Path:
        return self.home.evaluation(*((unit.arm, unit.seed) if unit else ("base", None)))

    def comparison(self) -> Stage:
        """Build the stage that compares the arms."""
        from selectit_dagster.comparison import compare as engine
        from selectit_dagster.orchestration.run_costs import stored_costs

        units = self.units.values()
        evaluations = [
            ("base", None, self._evaluation_folder(None)),
            *((unit.group, unit.seed, self._evaluation_folder(unit)) for unit in units),
        ]
        section = self.experiment.comparison
        rule, size = self.experiment.selection.size

        def request() -> engine.ComparisonRequest:
            # the costs are in manifests that may have to be fetched first
            return engine.ComparisonRequest(
                evaluations=tuple(evaluations),
                section=section,
                costs=stored_costs(self),
                share=float(size) if rule == "share" else None,
                base_model=self.tuning.base_model.path,
                titles=self._titles(),
            )

        return self._stage(
            "arm_comparison",
            self.home.comparison,
            engine.compare,
            engine.comparison_fingerprint,
            request,
            unit="comparisons",
            settings={"comparison": section.model_dump(mode="json")},
            inputs=[
                *(folder for _, _, folder in evaluations),
                *(folder for _, folder in self._scores),
                self.home.ranking,
                *(self.home.selected(arm) for arm in self.arms),
                *(self._checkpoint_folder(unit) for unit in units),
            ],
        )

    def _titles(self) -> dict[str, str]:
        """Return, by arm, how it is called in a sentence."""
        from selectit_dagster.comparison.sentences import share_in_words

        size, titles = self.experiment.selection.size, {"base": "the untuned base model"}
        for arm in self.experiment.selection.arms:
            rule, own = arm.size or size
            titles[arm.name] = arm.spoken(share_in_words(own if rule == "share" else None))
        return titles
