"""What a stage is: one artefact, what it depends on, and the engine's work that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from selectit_dagster.artefacts.manifest import Fingerprint, Manifest, is_current, read_manifest
from selectit_dagster.progress import Progress

R = TypeVar("R")


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
    note:
        Told, when the artefact was asked for through Dagster, who or what asked and where that
        is recorded: ``asked_by``, ``dagster_run``, ``mlflow_run``.
    remark:
        Returns what a person should read first about this very run.
    is_published, was_fetched:
        Whether the artefact in the folder is the one that is valid there, and whether it was
        made on another machine.
    """

    asset: str
    folder: Path
    fingerprint: Callable[[], Fingerprint]
    run: Callable[[Progress], Manifest]
    unit: str
    settings: dict[str, Any] = field(default_factory=dict)
    partition: str | None = None
    address: str | None = None
    note: Callable[..., None] = lambda **_: None
    remark: Callable[[], str] = str
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
class StageSpec(Generic[R]):
    """How an engine makes a stage's artefact.

    Attributes
    ----------
    make:
        Makes the artefact of a request in a folder, or returns the current one.
    asked:
        Returns the fingerprint of a request.
    request:
        Returns the request; called each time, for it may rest on files that come later.
    """

    make: Callable[[R, Path, Progress], Manifest]
    asked: Callable[[R], Fingerprint]
    request: Callable[[], R]

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint that a current artefact has."""
        return self.asked(self.request())

    def run(self, folder: Path, progress: Progress) -> Manifest:
        """Make the artefact in ``folder``."""
        return self.make(self.request(), folder, progress)
