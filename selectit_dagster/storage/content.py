"""Moving the content of artefacts: what is missing goes up, what comes down is checked."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.artefacts.files import folder_lock, sha256_file
from selectit_dagster.errors import ArtefactError, TransientError, UserError
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.storage import layout
from selectit_dagster.storage.layout import Item
from selectit_dagster.storage.remote import Entry, Moved, Remote

LOGGER = logging.getLogger("selectit_dagster")
STAGING = ".fetch"
MEGABYTE = 1_000_000
# a stored object that nothing names yet is trusted to stay that long; see maintenance.py
TRUSTED_FOR = dt.timedelta(hours=12)
_AT_ONCE = 4
_LOCK_SECONDS = 600.0
_SILENT = Silent()


@dataclass(frozen=True)
class Content:
    """The content of artefacts at one storage place."""

    remote: Remote

    def upload(
        self,
        stage: str,
        folder: Path,
        items: list[Item],
        valid: set[str],
        progress: Progress = _SILENT,
    ) -> None:
        """Write the content of a folder's files where it is missing.

        ``valid`` are the hashes that a valid manifest names: their objects stay.

        Raises
        ------
        ArtefactError
            When a file is not what its manifest says.
        UserError, TransientError
            When the place cannot be written.
        """
        there = self.remote.entries(f"{stage}/{layout.OBJECTS}")
        missing = [
            i for i in items if not _trusted(there.get(layout.object_key(stage, i)), i, valid)
        ]
        self._transfer(missing, lambda item, moved: self._put(stage, folder, item, moved), progress)

    def _put(self, stage: str, folder: Path, item: Item, moved: Moved) -> None:
        path = folder / item.name
        if not path.exists() or sha256_file(path) != item.sha256:
            raise ArtefactError(
                f"{path} is not what its manifest says, so it is not published",
                hint=f"remove {folder} and run again",
            )
        key = layout.object_key(stage, item)
        self.remote.upload(path, key, moved)
        entry = self.remote.entry(key)
        if entry is None or entry.size != item.size:
            raise ArtefactError(
                f"{self.remote.address(key)} has {entry.size if entry else 'no'} bytes after "
                f"{item.size} were written",
                hint="the storage does not keep what it accepts; look at it before going on",
            )

    def _transfer(
        self, items: list[Item], move: Callable[[Item, Moved], None], progress: Progress
    ) -> None:
        """Move files, a few at once, and report megabytes as they go."""
        total = max(sum(item.size for item in items), 1)
        done, turn = 0, threading.Lock()

        def moved(count: int) -> None:
            nonlocal done
            with turn:
                # what is read a second time is not counted beyond the whole
                done = min(done + count, total)
                progress.update(done // MEGABYTE, max(total // MEGABYTE, 1))

        with ThreadPoolExecutor(_AT_ONCE, "storage") as pool:
            futures = [pool.submit(move, item, moved) for item in items]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def download(
        self, stage: str, folder: Path, items: list[Item], progress: Progress = _SILENT
    ) -> None:
        """Bring the content of ``items`` into the folder's staging area, checked.

        Raises
        ------
        ArtefactError
            Naming the object that is missing, or is not what the manifest says.
        UserError, TransientError
            When the place cannot be read, or the folder not be written.
        """
        staging = folder / STAGING
        try:
            staging.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write {staging}: {error.strerror or error}",
                hint="make room for that folder, or choose another --home",
            ) from error
        wanted = list({item.sha256: item for item in items}.values())
        self._transfer(wanted, lambda item, moved: self._get(stage, folder, item, moved), progress)

    def _get(self, stage: str, folder: Path, item: Item, moved: Moved) -> None:
        """Download one file unless it is in the staging area, or in the folder, already."""
        target = folder / STAGING / item.sha256
        if target.exists():
            return
        here = folder / item.name
        temporary = target.with_name(f"{item.sha256}.{os.getpid()}.part")
        try:
            if holds(here, item):
                shutil.copyfile(here, temporary)
            else:
                self._get_checked(stage, item, temporary, moved)
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.replace(target)
        except OSError as error:
            raise UserError(
                f"cannot write {target}: {error.strerror or error}",
                hint="make room, or choose another --home",
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _get_checked(self, stage: str, item: Item, temporary: Path, moved: Moved) -> None:
        """Download one object; once more when what came is not what the manifest says."""
        key = layout.object_key(stage, item)
        for attempt in (1, 2):
            try:
                self.remote.download(key, temporary, moved)
            except FileNotFoundError as error:
                raise self._damaged(key, "is missing") from error
            except TransientError as error:
                # some libraries compare a checksum of their own, and tell it as any failure
                if attempt == 2:
                    raise
                LOGGER.warning("%s; reading it again", error)
                continue
            if holds(temporary, item):
                return
            if attempt == 1:
                LOGGER.warning("%s came damaged, reading it again", self.remote.address(key))
        raise self._damaged(key, "is not what its manifest says: it was truncated or altered")

    def _damaged(self, key: str, what: str) -> ArtefactError:
        return ArtefactError(
            f"{self.remote.address(key)} {what}",
            hint="`selectit storage check --repair` mends what this home still has and frees "
            "the rest to be made again; a lifecycle rule of the bucket may have removed it",
        )


@contextlib.contextmanager
def waited_lock(folder: Path, purpose: str) -> Iterator[None]:
    """Hold a folder's lock, after waiting for a fetch by another process to end.

    Raises
    ------
    UserError
        When somebody holds the folder for longer than ten minutes.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(folder_lock(folder, purpose))
                break
            except UserError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield


def place(folder: Path, items: list[Item], names: Callable[[Item], str] | None = None) -> None:
    """Put staged files into the folder under their names (or those that ``names`` gives)."""
    uses: dict[str, int] = {}
    for item in items:
        uses[item.sha256] = uses.get(item.sha256, 0) + 1
    for item in items:
        target = folder / (names(item) if names else item.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = folder / STAGING / item.sha256
        uses[item.sha256] -= 1
        if uses[item.sha256]:  # two names, one content
            temporary = staged.with_suffix(".copy")
            shutil.copyfile(staged, temporary)
            staged = temporary
        staged.chmod(0o644)
        staged.replace(target)


def holds(path: Path, item: Item) -> bool:
    """Tell whether a file is there and is what the manifest says."""
    return path.is_file() and path.stat().st_size == item.size and sha256_file(path) == item.sha256


def _trusted(entry: Entry | None, item: Item, live: set[str]) -> bool:
    """Tell whether an object is there and will stay: named by something valid, or young.

    An old one that nothing names may be removed at this moment by ``selectit storage gc``; it
    is written again, which makes it young.
    """
    if entry is None or entry.size != item.size:
        return False
    if item.sha256 in live or entry.modified is None:
        return True
    return dt.datetime.now(dt.UTC) - entry.modified < TRUSTED_FOR
