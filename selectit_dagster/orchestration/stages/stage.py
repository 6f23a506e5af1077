"""What a stage is: one artefact, the engine's work and the partition; how one is put together.

Must not be here: a particular stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import Fingerprint, Manifest, is_current, read_manifest
from selectit_dagster.experiment import Experiment, TuningSection
from selectit_dagster.progress import Progress

if TYPE_CHECKING:
    from selectit_dagster.artefacts.remote_copy import ArtefactStore
    from selectit_dagster.artefacts.unfinished_work import UnfinishedWork
    from selectit_dagster.selection.arms.arm import Arm

R = TypeVar("R")


@dataclass(frozen=True)
class Stage:
    """One unit of work: where its artefact lies, what it depends on, how to make it.

    Attributes
    ----------
    asset:
        The Dagster asset's name; ``uncertainty_scores/<model>`` for a scoring model.
    folder:
        The artefact's folder.
    fingerprint:
        Returns the fingerprint that a current artefact has; needs the upstream manifests.
    run:
        Makes the artefact (or returns the current one) and returns its manifest.
    unit:
        What its progress counts.
    settings:
        The part of the experiment that this stage depends on, for MLflow's parameters.
    partition:
        The Dagster partition key, or None.
    inputs:
        The folders that it reads.
    note:
        Told, when the artefact was asked for through Dagster, who or what asked and where that
        is recorded: ``asked_by``, ``dagster_run``, ``mlflow_run``.
    remark:
        Returns what a person should read first about this very run.
    work, reuses, make_room, beside:
        For storage: which files it resumes from; whether it takes rows over from an artefact with
        the first fingerprint when it makes the second one; what is called before another artefact
        is put into the folder, to keep what must be kept; and further folders that belong to the
        artefact, the first of which names the others.
    address:
        Where the artefact is published, None where it stays in the home.
    is_published, was_fetched:
        Tell whether storage has the artefact, and whether this home has it from there.
    """

    asset: str
    folder: Path
    fingerprint: Callable[[], Fingerprint]
    run: Callable[[Progress], Manifest]
    unit: str
    settings: dict[str, Any] = field(default_factory=dict)
    partition: str | None = None
    inputs: Sequence[Path] = ()
    note: Callable[..., None] = lambda **_: None
    remark: Callable[[], str] = str
    work: UnfinishedWork | None = None
    reuses: Callable[[Fingerprint, Fingerprint], bool] | None = None
    make_room: Callable[[], None] | None = None
    beside: Callable[[], Sequence[Path]] = tuple
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
class Unit:
    """A checkpoint to tune: one subset with one training seed; ``group`` is the subset's arm."""

    arm: str
    seed: int
    group: str

    @property
    def key(self) -> str:
        """The partition key."""
        return f"{self.arm}_seed-{self.seed}"


def subsets(arms: Iterable[Arm]) -> dict[str, tuple[Arm, int | None]]:
    """Return each subset's name with its arm and, for draws, its seed."""
    return {
        arm.name if seed is None else f"{arm.name}-{seed}": (arm, seed)
        for arm in arms
        for seed in arm.draws
    }


def checkpoints(
    table: Mapping[str, tuple[Arm, int | None]], tuning: TuningSection | None
) -> dict[str, Unit]:
    """Return the checkpoints to tune on the subsets, by partition key.

    Every arm is tuned with every training seed, except arms that are drawn: draw i is tuned
    with training seed i (in turn), so that such an arm has as many checkpoints as the others
    and its spread holds both sources of chance.
    """
    if tuning is None:
        return {}
    seeds = tuning.seeds
    units = [
        Unit(name, seed, arm.name)
        for name, (arm, draw) in table.items()
        if draw is None
        for seed in seeds
    ]
    drawn: dict[str, list[str]] = {}
    for name, (arm, draw) in table.items():
        if draw is not None:
            drawn.setdefault(arm.name, []).append(name)
    for group, draws in drawn.items():
        for index in range(max(len(draws), len(seeds))):
            units.append(Unit(draws[index % len(draws)], seeds[index % len(seeds)], group))
    return {unit.key: unit for unit in dict.fromkeys(units)}


class StageFactory:
    """One experiment in one home, and how a stage of it is put together.

    ``at_home`` leaves storage alone, whatever the experiment or the environment says, and makes
    no profile of the data, as nobody is shown one.
    """

    def __init__(self, experiment: Experiment, home: Home, *, at_home: bool = False) -> None:
        self.experiment = experiment
        self.home = home
        self.at_home = at_home

    @cached_property
    def store(self) -> ArtefactStore | None:
        """The storage place of the artefacts, None when they stay in the home."""
        from selectit_dagster.artefacts.address import storage_address

        url = None if self.at_home else storage_address(self.experiment.storage.url)
        if url is None:
            return None
        from selectit_dagster.artefacts.remote_copy import ArtefactStore
        from selectit_dagster.artefacts.remote_files import Remote

        return ArtefactStore(Remote(url), self.home)

    @cached_property
    def arms(self) -> dict[str, tuple[Arm, int | None]]:
        """Each subset's name with its arm and, for draws, its seed."""
        return subsets(self.experiment.selection.arms)

    @property
    def selected_asset(self) -> str:
        """The asset of the arms' subsets, as the experiment calls it."""
        return self.experiment.dagster.selected_asset

    @property
    def production_arm(self) -> str:
        """The arm that is re-selected by itself: SelectIT's, or the first."""
        return "selectit" if "selectit" in self.arms else next(iter(self.arms))

    @cached_property
    def units(self) -> dict[str, Unit]:
        """The checkpoints to tune, by partition key."""
        return checkpoints(self.arms, self.experiment.tuning)

    @property
    def _scores(self) -> tuple[tuple[str, Path], ...]:
        """The scoring models' names and the folders of their scores."""
        return tuple((m.name, self.home.scores(m.name)) for m in self.experiment.scoring_models)

    def _stage(
        self,
        asset: str,
        folder: Path,
        make: Callable[[R, Path, Progress], Manifest],
        asked: Callable[[R], Fingerprint],
        request: Callable[[], R],
        **more: Any,  # noqa: ANN401 - the other fields of ``Stage``
    ) -> Stage:
        """Return a stage, with storage around it where there is one.

        Parameters
        ----------
        make, asked:
            Make the artefact of a request in a folder, or return the current one; return the
            fingerprint of a request.
        request:
            Returns the request; called each time, for it may rest on files that come later.
        """
        stage = Stage(
            asset=asset,
            folder=folder,
            fingerprint=lambda: asked(request()),
            run=lambda progress: make(request(), folder, progress),
            **more,
        )
        if self.store is None:
            return stage
        from selectit_dagster.orchestration.remote_sync import stored

        return stored(stage, self.store, self.experiment.storage.unfinished_seconds)
