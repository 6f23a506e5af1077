"""From an experiment and a home to the stages: which engine, which request, which folder.

Belongs here: the wiring of files between stages, and whether a stage is current. Must not
be here: Dagster, MLflow, and any work of the engines. Importing this module is cheap; the
engines are imported when a stage is built.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts import Fingerprint, Manifest, is_current, read_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import (
    Arm,
    DatasetSection,
    Experiment,
    TuningSection,
    check_experiment,
)
from selectit_dagster.files import staged_folder
from selectit_dagster.home import Home
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.storage.address import is_address

if TYPE_CHECKING:
    from selectit_dagster.selection.ranking import RankingRequest
    from selectit_dagster.storage.store import ArtefactStore

Run = Callable[[Progress], Manifest]


@dataclass(frozen=True)
class Stage:
    """One unit of work: where its artefact lies, what it depends on, how to make it.

    Attributes
    ----------
    asset:
        The Dagster asset's name; ``uncertainty_scores/<model>`` for a scoring model.
    partition:
        The Dagster partition key, or None.
    folder:
        The artefact's folder.
    fingerprint:
        Returns the fingerprint that a current artefact has; needs the upstream manifests.
    run:
        Makes the artefact (or returns the current one) and returns its manifest.
    settings:
        The part of the experiment that this stage depends on, for MLflow's parameters.
    address:
        Where the artefact is published, None where it stays in the home.
    is_published, was_fetched:
        Whether the artefact in the folder is the one that is valid there, and whether it was
        made on another machine.
    """

    asset: str
    folder: Path
    fingerprint: Callable[[], Fingerprint]
    run: Run
    unit: str
    settings: dict[str, Any] = field(default_factory=dict)
    partition: str | None = None
    address: str | None = None
    is_published: Callable[[], bool] = lambda: True
    was_fetched: Callable[[], bool] = lambda: False

    @property
    def title(self) -> str:
        """Asset and partition as a person names them."""
        return f"{self.asset} [{self.partition}]" if self.partition else self.asset

    def is_current(self) -> bool:
        """Tell whether the artefact is complete, from what is asked for now, and published."""
        if read_manifest(self.folder) is None:
            return False
        return is_current(self.folder, self.fingerprint()) and self.is_published()


@dataclass(frozen=True)
class Overrides:
    """What a launchpad run may change without touching the experiment file.

    ``thetas`` are (model name, fusion weight); of ``share``, ``count`` and ``threshold`` one.
    """

    alpha: float | None = None
    num_prompts: int | None = None
    variant: str | None = None
    ablation: str | None = None
    models: tuple[str, ...] | None = None
    thetas: tuple[tuple[str, float], ...] | None = None
    share: float | None = None
    count: int | None = None
    threshold: float | None = None
    seed: int | None = None
    model: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the overrides that were set."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass(frozen=True)
class Unit:
    """A checkpoint to tune: one arm with one training seed."""

    arm: str
    seed: int

    @property
    def key(self) -> str:
        """The partition key."""
        return f"{self.arm}_seed-{self.seed}"


class Pipeline:
    """All stages of one experiment in one home.

    ``at_home`` leaves storage alone, whatever the experiment or the environment says.
    """

    def __init__(self, experiment: Experiment, home: Home, *, at_home: bool = False) -> None:
        self.experiment = experiment
        self.home = home
        self.at_home = at_home

    @cached_property
    def store(self) -> ArtefactStore | None:
        """The storage place of the artefacts, None when they stay in the home."""
        from selectit_dagster.storage.address import storage_address

        url = None if self.at_home else storage_address(self.experiment.storage.url)
        if url is None:
            return None
        from selectit_dagster.storage.remote import Remote
        from selectit_dagster.storage.store import ArtefactStore

        return ArtefactStore(Remote(url), self.home)

    def _stored(self, stage: Stage, *inputs: Path, **habits: Any) -> Stage:  # noqa: ANN401
        """Return the stage with storage around it, where there is one; see ``stored.py``."""
        store = self.store
        if store is None or not stage.folder.is_relative_to(self.home.folder):
            return stage
        from selectit_dagster.platform.stored import Habits, stored

        seconds = self.experiment.storage.unfinished_seconds
        return stored(stage, store, Habits(inputs, **habits), seconds)

    @cached_property
    def arms(self) -> dict[str, tuple[Arm, int | None]]:
        """Each subset's name with its arm and, for random draws, its seed."""
        table: dict[str, tuple[Arm, int | None]] = {}
        for arm in self.experiment.selection.arms:
            if arm.kind == "random":
                table.update({f"random-{seed}": (arm, seed) for seed in arm.seeds})
            else:
                table[arm.kind] = (arm, None)
        return table

    @cached_property
    def units(self) -> dict[str, Unit]:
        """The checkpoints to tune, by partition key.

        Every arm is tuned with every training seed, except the draws of the random arm:
        draw i is tuned with training seed i (in turn), so that the random arm has as many
        checkpoints as the others and its spread holds both sources of chance.
        """
        tuning = self.experiment.tuning
        if tuning is None:
            return {}
        units: list[Unit] = []
        draws = [name for name in self.arms if name.startswith("random-")]
        for arm in self.arms:
            if arm in draws:
                continue
            units += [Unit(arm, seed) for seed in tuning.seeds]
        for index in range(max(len(draws), len(tuning.seeds)) if draws else 0):
            units.append(Unit(draws[index % len(draws)], tuning.seeds[index % len(tuning.seeds)]))
        return {unit.key: unit for unit in dict.fromkeys(units)}

    def raw(self) -> Stage:
        """Build the stage that reads the raw dataset."""
        from selectit_dagster.data import ingest as engine

        def request() -> engine.IngestRequest:
            return engine.IngestRequest(self._dataset())

        return self._stored(
            Stage(
                asset="raw_dataset",
                folder=self.home.raw,
                fingerprint=lambda: engine.ingest_fingerprint(request()),
                run=lambda progress: engine.ingest(request(), self.home.raw, progress),
                unit="records",
                settings={"dataset": self.experiment.dataset.model_dump(mode="json")},
            ),
        )

    def _dataset(self) -> DatasetSection:
        """Return the dataset's section; its path is a local copy where it is an address."""
        dataset = self.experiment.dataset
        if not is_address(dataset.path):
            return dataset
        from selectit_dagster.storage.source import local_copy

        copy = local_copy(dataset.path, self.home.folder / "source")
        return dataset.model_copy(update={"path": str(copy)})

    def questions(self) -> Stage:
        """Build the stage that gathers the benchmarks' questions."""
        from selectit_dagster.evaluation import questions as engine

        request = engine.QuestionsRequest(self.experiment.benchmarks)
        folder = self.home.folder / "questions"
        return self._stored(
            Stage(
                asset="benchmark_questions",
                folder=folder,
                fingerprint=lambda: engine.questions_fingerprint(request),
                run=lambda progress: engine.collect_questions(request, folder, progress),
                unit="questions",
                settings={"benchmarks": [b.model_dump(mode="json") for b in request.benchmarks]},
            ),
        )

    def curated(self) -> Stage:
        """Build the stage that curates the raw dataset."""
        from selectit_dagster.data import curation as engine

        questions = self.questions().folder if self.experiment.benchmarks else None
        request = engine.CurationRequest(
            self.home.raw,
            self.experiment.curation,
            questions,
            tokenizer=self.experiment.scoring_models[0],
        )
        return self._stored(
            Stage(
                asset="curated_dataset",
                folder=self.home.curated,
                fingerprint=lambda: engine.curation_fingerprint(request),
                run=lambda progress: engine.curate(request, self.home.curated, progress),
                unit="records",
                settings={"curation": self.experiment.curation.model_dump(mode="json")},
            ),
            self.home.raw,
            *([questions] if questions else []),
        )

    def scores(self, name: str) -> Stage:
        """Build the stage that rates every record with one scoring model."""
        from selectit_dagster.rating import scoring as engine
        from selectit_dagster.rating.folder import SCORE_ROWS, engine_digest, retire_rows

        model = next(m for m in self.experiment.scoring_models if m.name == name)
        _, size = self.experiment.selection.size
        share = size if self.experiment.selection.size[0] == "share" else 0.2
        request = engine.ScoringRequest(
            self.home.curated, model, self.experiment.rating, share, self.experiment.ray
        )
        folder = self.home.scores(name)
        return self._stored(
            Stage(
                asset=f"uncertainty_scores/{name}",
                folder=folder,
                fingerprint=lambda: engine.scoring_fingerprint(request),
                run=lambda progress: engine.score(request, folder, progress),
                unit="prompts",
                settings={
                    "model": model.model_dump(mode="json"),
                    "rating": self.experiment.rating.model_dump(mode="json"),
                },
            ),
            self.home.curated,
            work=SCORE_ROWS,
            reuses=lambda old, new: engine_digest(old) == engine_digest(new),
            make_room=lambda: retire_rows(folder),
        )

    def _score_places(self) -> tuple[Path, ...]:
        return tuple(folder for _, folder in self._score_folders())

    def _score_folders(self) -> tuple[tuple[str, Path], ...]:
        return tuple((m.name, self.home.scores(m.name)) for m in self.experiment.scoring_models)

    def _ranking_request(self, overrides: Overrides | None) -> RankingRequest:
        from selectit_dagster.selection.ranking import RankingRequest

        experiment = apply_overrides(self.experiment, overrides)
        rating, models = experiment.rating, experiment.scoring_models
        if overrides is not None and overrides.models is not None:
            models = tuple(model for model in models if model.name in overrides.models)
        return RankingRequest(
            records=self.home.curated,
            scores=tuple((model.name, self.home.scores(model.name)) for model in models),
            num_prompts=rating.num_prompts,
            num_ratings=rating.num_ratings,
            alpha=rating.alpha,
            variant=rating.variant,
            ablation=rating.ablation,
            thetas=tuple((m.name, m.theta) for m in models if m.theta is not None),
        )

    def ranking(self, overrides: Overrides | None = None, *, folder: Path | None = None) -> Stage:
        """Build the stage that fuses the stored scores; ``folder`` keeps the home's own."""
        from selectit_dagster.selection import ranking as engine

        request = self._ranking_request(overrides)
        out = folder or self.home.ranking
        fields = ("num_prompts", "num_ratings", "alpha", "variant", "ablation")
        return self._stored(
            Stage(
                asset="ranking",
                folder=out,
                fingerprint=lambda: engine.ranking_fingerprint(request),
                run=lambda progress: engine.rank(request, out, progress),
                unit="records",
                settings={
                    "rating": {name: getattr(request, name) for name in fields},
                    "models": [name for name, _ in request.scores],
                    "thetas": dict(request.thetas),
                },
            ),
            self.home.curated,
            *self._score_places(),
        )

    def sensitivity(self) -> Stage:
        """Build the stage that varies α, K, models and variant, and resamples the prompts."""
        from selectit_dagster.selection import sensitivity as engine

        rule, size = self.experiment.selection.size
        request = engine.SensitivityRequest(
            ranking=self._ranking_request(None), size_rule=rule, size=size
        )
        folder = self.home.sensitivity
        return self._stored(
            Stage(
                asset="sensitivity",
                folder=folder,
                fingerprint=lambda: engine.sensitivity_fingerprint(request),
                run=lambda progress: engine.sensitivity(request, folder, progress),
                unit="resamples",
                settings={"size": {rule: size}},
            ),
            self.home.curated,
            *self._score_places(),
        )

    def selected(
        self,
        arm: str,
        overrides: Overrides | None = None,
        *,
        ranking: Path | None = None,
        folder: Path | None = None,
    ) -> Stage:
        """Build the stage that writes the dataset that one arm chooses.

        ``ranking`` and ``folder`` stand in for the home's own, to try something else.
        """
        from selectit_dagster.selection import select as engine

        spec, seed = self._arm(arm, overrides)
        rule, size = apply_overrides(self.experiment, overrides).selection.size
        request = engine.SelectionRequest(
            arm=arm,
            kind=spec.kind,
            seed=seed,
            records=self.home.curated,
            ranking=ranking or self.home.ranking,
            scores=self._score_folders(),
            size_rule=rule,
            size=size,
            model=self._arm_model(spec),
            provenance=self._provenance(),
        )
        out = folder or self.home.selected(arm)

        def run(progress: Progress) -> Manifest:
            if arm == "selectit" and not is_current(out, engine.selection_fingerprint(request)):
                keep_previous(out)
            return engine.select(request, out, progress)

        return self._stored(
            Stage(
                asset="selective_alpaca",
                partition=arm,
                folder=out,
                fingerprint=lambda: engine.selection_fingerprint(request),
                run=run,
                unit="records",
                settings={"arm": spec.model_dump(mode="json"), "size": {rule: size}, "seed": seed},
            ),
            self.home.curated,
            ranking or self.home.ranking,
            *self._score_places(),
            make_room=(lambda: keep_previous(out)) if arm == "selectit" else None,
        )

    def _arm(self, name: str, overrides: Overrides | None) -> tuple[Arm, int | None]:
        """Return an arm and its draw, with the launchpad's model or seed in place.

        Raises
        ------
        UserError
            When the arm has no use for the given seed or model, or there is no such model.
        """
        arm, seed = self.arms[name]
        if overrides is None:
            return arm, seed
        if overrides.seed is not None:
            if seed is None:
                raise UserError(
                    f"seed {overrides.seed} was given for the arm {name}, which draws nothing",
                    hint="give a seed for a partition random-N only",
                )
            seed = overrides.seed
        if overrides.model is not None:
            known = [model.name for model in self.experiment.scoring_models]
            if arm.kind in ("selectit", "random", "longest", "full"):
                raise UserError(
                    f"model {overrides.model} was given for the arm {name}, which takes none",
                    hint="to fuse other models, materialise `ranking` with `models`",
                )
            if overrides.model not in known:
                raise UserError(f"no scoring model {overrides.model}; there are {known}")
            arm = arm.model_copy(update={"model": overrides.model})
        return arm, seed

    def _arm_model(self, arm: Arm) -> Any:  # noqa: ANN401 - ScoringModel or None
        """Return the model an arm asks for: the named one, else the last scoring model.

        The ablations read stored scores; unnamed, they take the model with the largest θ.
        """
        if arm.model is None and arm.kind in ("token-level", "sentence-level"):
            return None
        models = {m.name: m for m in self.experiment.scoring_models}
        return models[arm.model] if arm.model else self.experiment.scoring_models[-1]

    def _provenance(self) -> dict[str, Any]:
        """Return what the dataset card says about where the selection came from."""
        experiment = self.experiment
        return {
            "experiment": experiment.name,
            "source": Path(experiment.dataset.path).name,
            "license": experiment.dataset.license,
            "models": [m.model_dump(mode="json") for m in experiment.scoring_models],
            "rating": experiment.rating.model_dump(mode="json"),
        }

    def checkpoint(self, unit: Unit, overrides: Overrides | None = None) -> Stage:
        """Build the stage that tunes the base model on one arm with one training seed.

        Another seed in ``overrides`` stands in for the unit's, in the unit's own folder.
        """
        from selectit_dagster.tuning import tune as engine

        tuning = self.tuning
        seed = overrides.seed if overrides is not None and overrides.seed is not None else unit.seed
        request = engine.TuningRequest(
            self.home.selected(unit.arm), tuning, seed, self.experiment.ray
        )
        folder = self.home.checkpoint(unit.arm, unit.seed)
        return self._stored(
            Stage(
                asset="lora_checkpoints",
                partition=unit.key,
                folder=folder,
                fingerprint=lambda: engine.tuning_fingerprint(request),
                run=lambda progress: engine.tune(request, folder, progress),
                unit="steps",
                settings={
                    "tuning": tuning.model_dump(mode="json"),
                    "arm": unit.arm,
                    "seed": seed,
                },
            ),
            self.home.selected(unit.arm),
            work=engine.RESUME_POINTS,
        )

    @property
    def tuning(self) -> TuningSection:
        """The tuning section; only asked for where the experiment has one."""
        if self.experiment.tuning is None:
            raise ValueError("this experiment has no tuning section")
        return self.experiment.tuning

    def evaluation(self, unit: Unit | None) -> Stage:
        """Build the stage that evaluates one checkpoint; None is the untuned base model."""
        from selectit_dagster.evaluation import evaluate as engine

        tuning = self.tuning
        checkpoint = self.home.checkpoint(unit.arm, unit.seed) if unit else None
        request = engine.EvaluationRequest(
            base=tuning.base_model,
            checkpoint=checkpoint,
            benchmarks=self.experiment.benchmarks,
            template=tuning.template,
            custom_template=tuning.custom_template,
            seed=unit.seed if unit else tuning.seeds[0],
        )
        folder = self.home.evaluation(unit.arm, unit.seed) if unit else self._untuned
        return self._stored(
            Stage(
                asset="benchmark_evaluations" if unit else "untuned_evaluation",
                partition=unit.key if unit else None,
                folder=folder,
                fingerprint=lambda: engine.evaluation_fingerprint(request),
                run=lambda progress: engine.evaluate(request, folder, progress),
                unit="questions",
                settings={
                    "benchmarks": [b.model_dump(mode="json") for b in self.experiment.benchmarks],
                    **({"arm": unit.arm, "seed": unit.seed} if unit else {"arm": "untuned"}),
                },
            ),
            *([checkpoint] if checkpoint else []),
            work=engine.ANSWERS,
            reuses=engine.shares_answers,
        )

    @property
    def _untuned(self) -> Path:
        return self.home.evaluation("base", None)

    def comparison(self) -> Stage:
        """Build the stage that compares the arms."""
        from selectit_dagster.comparison import compare as engine
        from selectit_dagster.platform.costs import stored_costs

        evaluations: list[tuple[str, int | None, Path]] = [("base", None, self._untuned)]
        evaluations += [
            (group_of(unit.arm), unit.seed, self.home.evaluation(unit.arm, unit.seed))
            for unit in self.units.values()
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
            )

        return self._stored(
            Stage(
                asset="arm_comparison",
                folder=self.home.comparison,
                fingerprint=lambda: engine.comparison_fingerprint(request()),
                run=lambda progress: engine.compare(request(), self.home.comparison, progress),
                unit="comparisons",
                settings={"comparison": section.model_dump(mode="json")},
            ),
            *(folder for _, _, folder in evaluations),
            *self._score_places(),
            self.home.ranking,
            *(self.home.selected(arm) for arm in self.arms),
            *(self.home.checkpoint(unit.arm, unit.seed) for unit in self.units.values()),
        )

    def report(self) -> Stage:
        """Build the stage that writes the report."""
        from selectit_dagster.platform import report as engine
        from selectit_dagster.platform.reporting import provenance

        request = engine.ReportRequest(self.experiment, self.home)
        return self._stored(
            Stage(
                asset="report",
                folder=self.home.report,
                fingerprint=lambda: engine.report_fingerprint(request),
                run=lambda progress: engine.write_report(request, self.home.report, progress),
                unit="sections",
            ),
            *(folder for _, folder in provenance.stages(self)),
        )

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
        if self.experiment.tuning is not None:
            yield [self.evaluation(None)]
            for unit in self.units.values():
                yield [self.checkpoint(unit), self.evaluation(unit)]
            yield [self.comparison()]
        yield [self.report()]


def previous_folder(folder: Path) -> Path:
    """Return where the selection before the present one is kept, for their comparison."""
    return folder.with_name(f".{folder.name}.previous")


def keep_previous(folder: Path) -> None:
    """Keep a complete selection beside its folder before it is replaced (hard links)."""
    if read_manifest(folder) is None:
        return
    old = previous_folder(folder)
    shutil.rmtree(old, ignore_errors=True)
    with staged_folder(old) as stage:
        for path in folder.iterdir():
            if path.is_file():
                os.link(path, stage / path.name)


def group_of(arm: str) -> str:
    """Return the arm that a subset belongs to: ``random-2`` is a draw of ``random``."""
    return "random" if arm.startswith("random-") else arm


def apply_overrides(experiment: Experiment, overrides: Overrides | None) -> Experiment:
    """Return the experiment with the overrides in place.

    Raises
    ------
    UserError
        When a value is out of its range or a weight is for no model.
    """
    given = overrides.given() if overrides is not None else {}
    # these change requests, not the experiment
    for other in ("models", "seed", "model"):
        given.pop(other, None)
    if not given:
        return experiment
    value = experiment.model_dump()
    thetas = dict(given.pop("thetas", ()))
    names = [model["name"] for model in value["scoring_models"]]
    if unknown := sorted(set(thetas) - set(names)):
        raise UserError(
            f"a fusion weight is given for {unknown[0]!r}, which is no scoring model",
            hint=f"the scoring models are {', '.join(names)}",
        )
    for model in value["scoring_models"]:
        model["theta"] = thetas.get(model["name"], model["theta"])
    sizes = {name: given.pop(name, None) for name in ("share", "count", "threshold")}
    if any(size is not None for size in sizes.values()):
        value["selection"].update(sizes)
    value["rating"].update(given)
    return check_experiment(value, source="the changed settings")


def done(stage: Stage) -> Manifest:
    """Return a stage's manifest, running nothing that is current."""
    return stage.run(Silent())
