"""A stage whose place of truth is storage: what it needs is fetched, what it makes published.

The engines know nothing of this. Before a stage is asked whether it is current, its inputs are
brought; before it works, its artefact is looked for in storage by fingerprint; while it works,
its finished files are sent; when it is done, its artefact is published.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    Fingerprint,
    Manifest,
    is_current,
    require_manifest,
)
from selectit_dagster.artefacts.remote_copy import ArtefactStore, Stored
from selectit_dagster.artefacts.unfinished_work import Sender, UnfinishedWork, take_up
from selectit_dagster.progress import Progress, Reporter

if TYPE_CHECKING:
    from selectit_dagster.orchestration.stages.stage import Stage

LOGGER = logging.getLogger("selectit_dagster")
NO_WORK = UnfinishedWork(())


@dataclass(frozen=True)
class StoragePolicy:
    """What storage has to know of a stage.

    Attributes
    ----------
    inputs:
        The folders that the stage reads.
    work:
        Which files it resumes from.
    reuses:
        Tells whether it takes rows over from an artefact with the first fingerprint when it
        makes the second one.
    make_room:
        Called before another artefact is put into the folder, to keep what must be kept.
    beside:
        Returns further folders that belong to the artefact: the first is brought with the
        inputs, all are published with it.
    """

    inputs: tuple[Path, ...] = ()
    work: UnfinishedWork = NO_WORK
    reuses: Callable[[Fingerprint, Fingerprint], bool] | None = None
    make_room: Callable[[], None] | None = None
    beside: Callable[[], Sequence[Path]] = tuple


def stored(
    stage: Stage, store: ArtefactStore, habits: StoragePolicy, seconds: float | None
) -> Stage:
    """Return the stage with storage around it; ``seconds`` apart, unfinished work is sent."""
    around = _Around(stage, store, habits, seconds)
    return dataclasses.replace(
        stage,
        fingerprint=around.fingerprint,
        run=around.run,
        address=store.address(stage.folder),
        is_published=lambda: store.is_published(stage.folder),
        was_fetched=lambda: store.was_fetched(stage.folder),
    )


def bring(store: ArtefactStore, folder: Path, progress: Progress) -> str:
    """Make a folder a copy of what is valid in storage; work that is only here is kept.

    Returns
    -------
    What was done: ``fetched``, ``current``, ``kept``, or ``absent`` when storage has nothing.
    """
    if (folder / MANIFEST).exists() and not store.is_copy(folder):
        return "kept"
    if store.is_published(folder):
        return "current"
    head = store.head(folder)
    if head is None:
        return "absent"
    store.fetch(folder, head, progress=progress)
    return "fetched"


@dataclass
class _Around:
    stage: Stage
    store: ArtefactStore
    habits: StoragePolicy
    seconds: float | None
    _ready: bool = field(default=False)

    def fingerprint(self) -> Fingerprint:
        """Bring the inputs, once, and ask the stage."""
        if not self._ready:
            for folder in (*self.habits.inputs, *self.habits.beside()[:1]):
                bring(self.store, folder, _transfers(f"fetching {folder.name}", None))
            self._ready = True
        return self.stage.fingerprint()

    def run(self, progress: Progress) -> Manifest:
        """Fetch the artefact, or make it, and publish it."""
        folder, fingerprint = self.stage.folder, self.fingerprint()
        self.store.remember(folder)
        if not is_current(folder, fingerprint):
            self._prepare(fingerprint, progress)
        with self._sending(fingerprint):
            self.stage.run(progress)
        for place in (*self.habits.beside(), folder):
            self.store.publish(place, _transfers(f"publishing {self.stage.title}", progress))
        return require_manifest(folder, made_by=self.stage.asset)

    def _sending(self, fingerprint: Fingerprint) -> contextlib.AbstractContextManager[None]:
        """Return the context in which what is finished is sent, where there is such work."""
        folder, work = self.stage.folder, self.habits.work
        if self.seconds is None or not work.patterns or is_current(folder, fingerprint):
            return contextlib.nullcontext()
        return Sender(self.store, folder, fingerprint, work, self.seconds).running()

    def _prepare(self, fingerprint: Fingerprint, progress: Progress) -> None:
        """Fetch the very artefact, else what can be resumed from or taken over."""
        store, folder = self.store, self.stage.folder
        made = store.made(folder, fingerprint)
        if made is not None:
            return self._fetch(made, progress)
        taken = take_up(store, folder, fingerprint, self.habits.work)
        head = store.head(folder)
        bare = not (folder / MANIFEST).exists() and not self.habits.work.files(folder)
        if taken or head is None or not bare or self.habits.reuses is None:
            return None
        if self.habits.reuses(head.manifest.fingerprint, fingerprint):
            self._fetch(head, progress)
        return None

    def _fetch(self, found: Stored, progress: Progress) -> None:
        shown = _transfers(f"fetching {self.stage.title}", progress)
        room = self.habits.make_room or self._drop_work
        self.store.fetch(self.stage.folder, found, make_room=room, progress=shown)

    def _drop_work(self) -> None:
        (self.stage.folder / MANIFEST).unlink(missing_ok=True)
        for path in self.habits.work.files(self.stage.folder):
            path.unlink(missing_ok=True)


def _transfers(what: str, progress: Progress | None) -> Reporter:
    """Return a reporter of megabytes that speaks where the stage's own one does."""
    emit = progress.emit if isinstance(progress, Reporter) else LOGGER.info
    return Reporter(what, "MB", emit=emit)
