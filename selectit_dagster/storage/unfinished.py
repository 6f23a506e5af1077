"""Work under way: its finished files are sent while a stage runs, and taken up elsewhere.

A score part, a journal, a resume point of the tuning: what a stage would resume from on its
own disk is resumed from on another machine's. A lost machine loses what it did since the
last round.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.artefacts.manifest import MANIFEST, Fingerprint, differences
from selectit_dagster.errors import ArtefactError, TransientError, UserError
from selectit_dagster.storage import layout
from selectit_dagster.storage.content import holds, place, waited_lock
from selectit_dagster.storage.layout import Item
from selectit_dagster.storage.store import ArtefactStore

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
    failures: int = 0
    _sent: dict[str, tuple[tuple[int, int], Item]] = field(default_factory=dict)
    _noted: list[Item] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Send in the background while the block runs; nothing is under way afterwards."""
        thread = threading.Thread(target=self._rounds, name="storage-sender", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._stop.set()
            thread.join()
            # interrupted or failed: what is finished by now is worth a last round
            self.try_round()
            raise
        self._stop.set()
        thread.join()

    def _rounds(self) -> None:
        while not self._stop.wait(self.seconds):
            self.try_round()

    def try_round(self) -> None:
        """Send once; a failure is told, once in a row, and counted."""
        try:
            self.round()
            self.failures = 0
        except (UserError, TransientError) as error:
            self.failures += 1
            if self.failures == 1:
                LOGGER.warning("unfinished work is only on this machine for now: %s", error)

    def round(self) -> None:
        """Send the files that are new or changed, then the list that names them."""
        if (self.folder / MANIFEST).exists():
            return  # complete: publishing follows
        files = self.work.files(self.folder)
        sent = [(path, item) for path in files if (item := self._send(path)) is not None]
        # a file that changed since it was read does not go with those read after it; a journal
        # grows all the time, and each beginning of it is a journal
        items = [item for path, item in sent if self._is_as_sent(path, item)]
        if items and items != self._noted:
            self.store.note_unfinished(self.folder, self.fingerprint, items)
            self._noted = items

    def _send(self, path: Path) -> Item | None:
        """Send one file unless it was sent as it is; None when it vanished or grew meanwhile."""
        name = path.relative_to(self.folder).as_posix()
        try:
            before = _state(path)
            if name in self._sent and self._sent[name][0] == before:
                return self._sent[name][1]
            if before[0] <= _SNAPSHOT or path.suffix == _JOURNAL:
                content = path.read_bytes()
                item = Item(name, len(content), hashlib.sha256(content).hexdigest())
                self.store.remote.write(self._key(item), content)
            else:
                item = Item(name, before[0], sha256_file(path))
                self.store.remote.upload(path, self._key(item))
                if _state(path) != before:
                    return None
        except FileNotFoundError:
            return None
        self._sent[name] = before, item
        return item

    def _is_as_sent(self, path: Path, item: Item) -> bool:
        if path.suffix == _JOURNAL:
            return True
        try:
            return self._sent[item.name][0] == _state(path)
        except FileNotFoundError:
            return False

    def _key(self, item: Item) -> str:
        return layout.object_key(self.store.stage(self.folder), item)


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def take_up(
    store: ArtefactStore, folder: Path, fingerprint: Fingerprint, work: UnfinishedWork
) -> int:
    """Bring what another machine finished of the same work; return how many files.

    A folder without work of its own gets the files where they were, and the stage resumes from
    them as from its own. Beside work of its own, rows go where the stage takes rows over from
    (``work.rows``), and where it knows no such place nothing is brought. Work that is damaged in
    storage is told, and done again.

    Raises
    ------
    UserError, TransientError
        When the place cannot be read.
    """
    try:
        found = store.unfinished(folder)
        if found is None or differences(found[0], fingerprint):
            return 0
        return _bring(store, folder, found[1], work)
    except ArtefactError as error:
        LOGGER.warning("unfinished work cannot be taken up: %s", error.message)
        return 0


def _bring(store: ArtefactStore, folder: Path, items: list[Item], work: UnfinishedWork) -> int:
    aside = (folder / MANIFEST).exists() or bool(work.files(folder))
    if aside:
        items = [i for i in items if work.is_row(i.name) and not holds(folder / i.name, i)]
    if not items:
        return 0
    with waited_lock(folder, "fetching from storage"):
        store.content.download(store.stage(folder), folder, items)
        place(folder, items, (lambda item: _aside_name(work.aside, item)) if aside else None)
    LOGGER.info("%d files of unfinished work came from %s", len(items), store.address(folder))
    return len(items)


def _aside_name(aside: str, item: Item) -> str:
    path = Path(item.name)
    return f"{aside}/{path.stem}-{item.sha256[:12]}{path.suffix}"
