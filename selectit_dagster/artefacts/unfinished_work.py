"""Work under way: its finished files are sent while a stage runs, and taken up elsewhere.

A score part, a journal, a resume point of the tuning: what a stage would resume from on its
own disk is resumed from on another machine's. A lost machine loses what it did since the
last round.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from selectit_dagster.artefacts.files import folder_lock, sha256_file
from selectit_dagster.artefacts.manifest import MANIFEST, Fingerprint, differences
from selectit_dagster.artefacts.remote_copy import (
    UNFINISHED,
    WAIT_SECONDS,
    ArtefactStore,
    Item,
    Stored,
    place_files,
)
from selectit_dagster.errors import ArtefactError, TransientError, UserError

LOGGER = logging.getLogger("selectit_dagster")
# files up to that size, and journals, are read in one go, so that what grows is sent as it was
_SNAPSHOT = 32 << 20
# files that are only ever appended to, line by line; a torn last line is passed over
_JOURNAL = ".jsonl"


@dataclass(frozen=True)
class UnfinishedWork:
    """Which files of a stage's folder hold work under way.

    Attributes
    ----------
    patterns:
        Glob patterns of the files that the stage resumes from.
    rows:
        Those of them (by the start of their names) that can be taken over beside other work.
    aside:
        The sub-folder where the stage looks for rows to take over.
    """

    patterns: tuple[str, ...]
    rows: tuple[str, ...] = ()
    aside: str = ""

    def files(self, folder: Path) -> list[Path]:
        """Return the files of work under way in a folder."""
        found = {path for pattern in self.patterns for path in folder.glob(pattern)}
        return sorted(path for path in found if path.is_file())

    def is_row(self, name: str) -> bool:
        """Tell whether a file can be taken over beside other work."""
        return bool(self.aside) and name.startswith(self.rows)

    def beside(self, item: Item) -> str:
        """Return the name under which it is taken over beside other work."""
        name = PurePosixPath(item.name)
        return f"{self.aside}/{name.stem}-{item.sha256[:12]}{name.suffix}"


@dataclass
class Sender:
    """Sends what a stage has finished, every few seconds, from a thread of its own.

    A round that fails is told once and tried again the next time: work goes on without the
    storage, and only publishing the complete artefact needs it.

    Parameters
    ----------
    store, folder:
        What is sent where.
    fingerprint:
        What the stage makes.
    work:
        Which files of the folder are resumed from.
    seconds:
        Time between rounds.
    """

    store: ArtefactStore
    folder: Path
    fingerprint: Fingerprint
    work: UnfinishedWork
    seconds: float
    _failed: bool = False
    _sent: dict[str, tuple[tuple[int, int], Item]] = field(default_factory=dict)
    _noted: list[Item] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Send in the background while the block runs; nothing is under way afterwards."""
        thread = threading.Thread(target=self._rounds, name="storage-sender", daemon=True)
        thread.start()
        ended = False
        try:
            yield
            ended = True
        finally:
            self._stop.set()
            thread.join()
            if not ended:  # interrupted or failed: what is finished by now is worth a last round
                self.try_round()

    def _rounds(self) -> None:
        while not self._stop.wait(self.seconds):
            self.try_round()

    def try_round(self) -> None:
        """Send once; a failure is told, once in a row."""
        try:
            self.round()
            self._failed = False
        except (UserError, TransientError) as error:
            if not self._failed:
                LOGGER.warning("unfinished work is only on this machine for now: %s", error)
            self._failed = True

    def round(self) -> None:
        """Send the files that are new or changed, then the list that names them."""
        if (self.folder / MANIFEST).exists():
            return  # complete: publishing follows
        sent = {path: self._send(path) for path in self.work.files(self.folder)}
        # a file that changed since it was read does not go with those read after it; a journal
        # grows all the time, and each beginning of it is a journal
        items = [
            item
            for path, item in sent.items()
            if item and (path.suffix == _JOURNAL or _state(path) == self._sent[item.name][0])
        ]
        if items and items != self._noted:
            files = {item.name: {"bytes": item.size, "sha256": item.sha256} for item in items}
            value = {"fingerprint": self.fingerprint, "files": files}
            self.store.remote.write(_key(self.store, self.folder), json.dumps(value).encode())
            self._noted = items

    def _send(self, path: Path) -> Item | None:
        """Send one file unless it was sent as it is; None when it vanished or grew meanwhile."""
        name, before = path.relative_to(self.folder).as_posix(), _state(path)
        if name in self._sent and self._sent[name][0] == before:
            return self._sent[name][1]
        try:
            if before[0] <= _SNAPSHOT or path.suffix == _JOURNAL:
                content = path.read_bytes()
                item = Item(name, len(content), hashlib.sha256(content).hexdigest())
                self.store.remote.write(_key(self.store, self.folder, item), content)
            else:
                item = Item(name, before[0], sha256_file(path))
                self.store.remote.write(_key(self.store, self.folder, item), path)
                if _state(path) != before:
                    return None
        except FileNotFoundError:
            return None
        self._sent[name] = before, item
        return item


def _state(path: Path) -> tuple[int, int]:
    """Return a file's size and time; what is gone has neither."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _key(store: ArtefactStore, folder: Path, item: Item | None = None) -> str:
    """Return where a file under way is stored, or the list of all of them.

    What changes later gets another place.
    """
    name = f"{item.sha256[:16]}/{PurePosixPath(item.name).name}" if item else "files.json"
    return f"{store.stage(folder)}/{UNFINISHED}/{name}"


def unfinished(store: ArtefactStore, folder: Path) -> Stored | None:
    """Return the fingerprint and the safe files of a stage that did not end.

    Raises
    ------
    ArtefactError
        When the stored list is not one of ours.
    """
    return store.stored(_key(store, folder))


def take_up(
    store: ArtefactStore, folder: Path, fingerprint: Fingerprint, work: UnfinishedWork
) -> int:
    """Bring what another machine finished of the same work; return how many files.

    A folder without work of its own gets the files where they were, and the stage resumes from
    them. Beside work of its own, rows go where the stage takes rows over from (``work.rows``).
    Work that is damaged in storage is told, and done again.

    Raises
    ------
    UserError, TransientError
        When the place cannot be read.
    """
    try:
        found = unfinished(store, folder)
        if found is None or differences(found.manifest.fingerprint, fingerprint):
            return 0
        keys = {item: _key(store, folder, item) for item in found.items}
        if (folder / MANIFEST).exists() or work.files(folder):
            keys = {
                item._replace(name=work.beside(item)): key
                for item, key in keys.items()
                if work.is_row(item.name) and not item.is_at(folder / item.name)
            }
        if keys:
            with folder_lock(folder, "fetching from storage", wait_seconds=WAIT_SECONDS):
                store.download(folder, keys)
                place_files(folder, list(keys))
            LOGGER.info("%d files of unfinished work came from %s", len(keys), folder.name)
        return len(keys)
    except ArtefactError as error:
        LOGGER.warning("unfinished work cannot be taken up: %s", error.message)
        return 0
