"""A stage whose place of truth is storage: what it needs is fetched, what it makes published.

The engines know nothing of this. Before a stage is asked whether it is current, its inputs are
brought; before it works, its artefact is looked for in storage by fingerprint; while it works,
its finished files are sent; when it is done, its artefact is published.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    Fingerprint,
    Manifest,
    is_current,
    require_manifest,
)
from selectit_dagster.artefacts.remote_copy import ArtefactStore
from selectit_dagster.artefacts.unfinished_work import Sender, UnfinishedWork, take_up
from selectit_dagster.progress import Progress, Reporter

if TYPE_CHECKING:
    from selectit_dagster.orchestration.stages.stage import Stage

LOGGER = logging.getLogger("selectit_dagster")
NO_WORK = UnfinishedWork(())


def stored(stage: Stage, store: ArtefactStore, seconds: float | None) -> Stage:
    """Return the stage with storage around it; ``seconds`` apart, unfinished work is sent."""
    folder, work = stage.folder, stage.work or NO_WORK

    @functools.cache
    def bring_inputs() -> None:
        for place in (*stage.inputs, *stage.beside()[:1]):
            bring(store, place, _transfers(f"fetching {place.name}", None))
        for place in stage.beside()[1:]:  # the first one names them
            bring(store, place, _transfers(f"fetching {place.name}", None))

    def fingerprint() -> Fingerprint:
        bring_inputs()
        return stage.fingerprint()

    def run(progress: Progress) -> Manifest:
        """Fetch the artefact, or make it, and publish it."""
        wanted = fingerprint()
        store.remember(folder)
        sending: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if not is_current(folder, wanted):
            _prepare(stage, store, wanted, progress)
            if seconds is not None and work.patterns and not is_current(folder, wanted):
                sending = Sender(store, folder, wanted, work, seconds).running()
        with sending:
            stage.run(progress)
        for place in (*stage.beside(), folder):
            store.publish(place, _transfers(f"publishing {stage.title}", progress))
        return require_manifest(folder, made_by=stage.asset)

    return dataclasses.replace(
        stage,
        fingerprint=fingerprint,
        run=run,
        address=store.address(folder),
        is_published=lambda: store.is_published(folder),
        was_fetched=lambda: store.was_fetched(folder),
    )


def _prepare(
    stage: Stage, store: ArtefactStore, fingerprint: Fingerprint, progress: Progress
) -> None:
    """Fetch the very artefact, else what can be resumed from or taken over."""
    folder, work = stage.folder, stage.work or NO_WORK

    def drop_work() -> None:
        for path in (folder / MANIFEST, *work.files(folder)):
            path.unlink(missing_ok=True)

    found = store.made(folder, fingerprint)
    if found is None:
        taken, head = take_up(store, folder, fingerprint, work), store.head(folder)
        bare = not (folder / MANIFEST).exists() and not work.files(folder)
        if head is None or taken or not bare or stage.reuses is None:
            return
        if not stage.reuses(head.manifest.fingerprint, fingerprint):
            return
        found = head
    shown = _transfers(f"fetching {stage.title}", progress)
    store.fetch(folder, found, make_room=stage.make_room or drop_work, progress=shown)


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


def _transfers(what: str, progress: Progress | None) -> Reporter:
    """Return a reporter of megabytes that speaks where the stage's own one does."""
    emit = progress.emit if isinstance(progress, Reporter) else LOGGER.info
    return Reporter(what, "MB", emit=emit)
