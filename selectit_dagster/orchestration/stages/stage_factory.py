"""What every stage is built from: experiment, home, storage, the subsets and the checkpoints.

Must not be here: a particular stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.home import Home
from selectit_dagster.experiment import Experiment
from selectit_dagster.orchestration.partitions import Unit, checkpoints, subsets
from selectit_dagster.orchestration.stages.stage import Stage, StageSpec

if TYPE_CHECKING:
    from selectit_dagster.artefacts.remote_copy import ArtefactStore
    from selectit_dagster.selection.arms.arm import Arm


class StageFactory:
    """One experiment in one home, and how a stage of it is put together.

    ``at_home`` leaves storage alone, whatever the experiment or the environment says.
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

    def _score_folders(self) -> tuple[tuple[str, Path], ...]:
        return tuple((m.name, self.home.scores(m.name)) for m in self.experiment.scoring_models)

    def _score_places(self) -> tuple[Path, ...]:
        return tuple(folder for _, folder in self._score_folders())

    def _stage(
        self,
        asset: str,
        folder: Path,
        recipe: StageSpec[Any],
        *,
        unit: str,
        settings: dict[str, Any] | None = None,
        partition: str | None = None,
        inputs: Iterable[Path] = (),
        **habits: Any,  # noqa: ANN401 - those of ``StoragePolicy``
    ) -> Stage:
        """Return a stage, with storage around it where there is one; see ``stored.py``.

        ``inputs`` are the folders that the stage reads.
        """
        stage = Stage(
            asset=asset,
            folder=folder,
            fingerprint=recipe.fingerprint,
            run=lambda progress: recipe.run(folder, progress),
            unit=unit,
            settings=settings or {},
            partition=partition,
        )
        store = self.store
        if store is None or not folder.is_relative_to(self.home.folder):
            return stage
        from selectit_dagster.orchestration.remote_sync import StoragePolicy, stored

        seconds = self.experiment.storage.unfinished_seconds
        return stored(stage, store, StoragePolicy(tuple(inputs), **habits), seconds)
