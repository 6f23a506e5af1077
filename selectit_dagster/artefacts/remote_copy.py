"""Artefacts beyond this machine: a folder is copied to a storage place, its manifest last.

Below the storage address::

    selectit-storage.json                               what this place is; proves writing works
    experiments/<experiment>/<stage>/manifest.json      the artefact that is valid now
    experiments/<experiment>/<stage>/made/<version>/    every one that was made, a plain folder
    experiments/<experiment>/<stage>/unfinished/        what of a stage under way is safe

A version is named after its fingerprint and its files' hashes, so its content never changes and
the single write of ``manifest.json`` is the switch between two of them. What is fetched is
checked against its manifest, byte for byte, before any of it is seen in the home.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from selectit_dagster.artefacts.files import (
    atomic_path,
    folder_lock,
    read_json,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
)
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    STAGING,
    STORED_NOTE,
    Fingerprint,
    Manifest,
    differences,
    digest_of,
    parsed_manifest,
    read_manifest,
)
from selectit_dagster.artefacts.remote_files import Remote
from selectit_dagster.errors import ArtefactError, TransientError, UserError
from selectit_dagster.progress import Progress, Silent

LOGGER = logging.getLogger("selectit_dagster")
MARKER = "selectit-storage.json"
FORMAT = 2
_READABLE = {1, 2}  # 1 kept content by its hash; it is still read
UNFINISHED = "unfinished"
FOREIGN = "something else wrote to this place: look at it, or choose another one"
WAIT_SECONDS = 600.0
_AT_ONCE = 4
_SILENT = Silent()


class Item(NamedTuple):
    """One file of an artefact: its name in the folder, its size in bytes, its hash."""

    name: str
    size: int
    sha256: str

    def is_at(self, path: Path) -> bool:
        """Tell whether a local file is this one."""
        same_size = path.is_file() and path.stat().st_size == self.size
        return same_size and sha256_file(path) == self.sha256

    def staged(self, folder: Path) -> Path:
        """Return where it waits in the folder until all files are there."""
        return folder / STAGING / sha256_json([self.name, self.sha256])[:32]


@dataclass(frozen=True)
class Stored:
    """A manifest as it lies in storage."""

    manifest: Manifest
    content: bytes

    @classmethod
    def parse(cls, content: bytes, *, source: str) -> Stored:
        """Read a manifest's bytes; raises ArtefactError when it is not one of ours.

        What comes from outside is not trusted to name files.
        """
        try:
            value = {"kind": UNFINISHED, "digest": "", **json.loads(content)}
        except (ValueError, TypeError, RecursionError) as error:
            raise ArtefactError(
                f"{source} is not a manifest of this project", hint=FOREIGN
            ) from error
        return cls(parsed_manifest(value, source=source, hint=FOREIGN), content)

    @property
    def items(self) -> list[Item]:
        """Its files."""
        files = self.manifest.files
        return [Item(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest's own bytes."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def version(self) -> str:
        """Name of the folder below ``made/`` that holds its files."""
        return f"{_short(self.manifest.fingerprint)}-{digest_of(self.manifest.files)[:16]}"


def _short(fingerprint: Fingerprint, length: int = 16) -> str:
    return sha256_json(fingerprint)[:length]


@dataclass
class ArtefactStore:
    """The artefacts of one experiment at one storage place.

    Parameters
    ----------
    remote:
        The place.
    home:
        The home whose folders are published and filled.
    """

    remote: Remote
    home: Home
    _seen: dict[str, str | None] = field(default_factory=dict)

    def stage(self, folder: Path) -> str:
        """Return a folder's path below the storage address."""
        below = folder.relative_to(self.home.folder).as_posix()
        return f"experiments/{self.home.experiment}/{below}".removesuffix("/.")

    def address(self, folder: Path) -> str:
        """Return where a folder's artefact is published."""
        return self.remote.address(self.stage(folder))

    def check_place(self) -> None:
        """Make sure that this place can be read and written and is laid out as expected.

        Raises
        ------
        UserError
            For wrong credentials, missing rights, no such bucket, another layout.
        TransientError
            When it cannot be reached.
        """
        known = self.remote.read(MARKER)
        if known is not None:
            try:
                version = json.loads(known)["format"]
            except (ValueError, KeyError, TypeError):
                version = None
            if version not in _READABLE:
                raise UserError(
                    f"{self.remote.address(MARKER)} says format {version!r}, this version of "
                    f"selectit writes {FORMAT}",
                    hint="use another place, or the version of selectit that made this one",
                )
        # written each time: a place that can only be read is found before anything is made
        self.remote.write(MARKER, json.dumps({"format": FORMAT}).encode() + b"\n")

    def state(self) -> tuple[bool, str]:
        """Return whether this place can be used, and a line that says so or why not."""
        try:
            self.check_place()
        except (UserError, TransientError) as error:
            return False, " ".join(str(error).split())
        return True, f"{self.remote.address()} (can be read and written)"

    def folders(self) -> list[Path]:
        """Return the home's folder of every artefact that is valid in storage."""
        root = self.stage(self.home.folder)
        return [
            self.home.folder / key[len(root) + 1 :].removesuffix(f"/{MANIFEST}")
            for key in self.remote.sizes(root)
            if key.endswith(f"/{MANIFEST}") and "/made/" not in key
        ]

    def head(self, folder: Path) -> Stored | None:
        """Return the manifest that is valid now for a folder."""
        return self.stored(f"{self.stage(folder)}/{MANIFEST}")

    def made(self, folder: Path, fingerprint: Fingerprint) -> Stored | None:
        """Return the manifest of the artefact made from ``fingerprint``, valid now or before."""
        below = f"{self.stage(folder)}/made"
        version, earlier = (
            f"{below}/{_short(fingerprint)}-",
            f"{below}/{_short(fingerprint, 32)}.json",
        )
        for key in self.remote.sizes(below):
            of_it = key == earlier or (key.startswith(version) and key.endswith(f"/{MANIFEST}"))
            found = self.stored(key) if of_it else None
            if found and not differences(found.manifest.fingerprint, fingerprint):
                return found
        return None

    def stored(self, key: str) -> Stored | None:
        """Return the manifest at a place, None when there is none."""
        content = self.remote.read(key)
        return (content and Stored.parse(content, source=self.remote.address(key))) or None

    # --- whether a folder is a copy of what is stored -------------------------------------------

    def _note(self, folder: Path) -> dict[str, Any]:
        path = folder / STORED_NOTE
        return dict(read_json(path)) if path.exists() else {}

    def is_copy(self, folder: Path) -> bool:
        """Tell whether the folder's artefact was published to, or fetched from, this place."""
        note, path = self._note(folder), folder / MANIFEST
        same_place = note.get("url") == self.remote.url and path.exists()
        return same_place and note.get("manifest") == sha256_file(path)

    def was_fetched(self, folder: Path) -> bool:
        """Tell whether the folder's artefact was made elsewhere."""
        return self.is_copy(folder) and self._note(folder).get("origin") == "storage"

    def is_published(self, folder: Path) -> bool:
        """Tell whether the folder's artefact is the valid one of this place."""
        if not self.is_copy(folder):
            return False
        head = self.head(folder)
        return head is not None and head.sha256 == self._note(folder)["manifest"]

    def _write_note(self, folder: Path, stored: Stored, origin: str) -> None:
        write_json(
            folder / STORED_NOTE,
            {"url": self.remote.url, "manifest": stored.sha256, "origin": origin},
        )

    # --- publishing ---------------------------------------------------------------------------

    def remember(self, folder: Path) -> None:
        """Note what is valid now, so that :meth:`publish` can tell who wrote in between."""
        head = self.head(folder)
        self._seen[self.stage(folder)] = head.sha256 if head else None

    def publish(self, folder: Path, progress: Progress = _SILENT) -> None:
        """Copy the folder's complete artefact to storage; nothing when it is there already.

        The version's files go first, those that are there are skipped; then its manifest, last
        the valid one. Killed at any moment, the artefact that was valid before stays so, whole.

        Raises
        ------
        ArtefactError
            When a file is not what the manifest says.
        UserError, TransientError
            When the place cannot be written.
        """
        if self.is_published(folder):
            return
        content = (folder / MANIFEST).read_bytes()
        stored = Stored.parse(content, source=str(folder / MANIFEST))
        stage = self.stage(folder)
        place = f"{stage}/made/{stored.version}"
        there = self.remote.sizes(place)
        missing = [i for i in stored.items if there.get(f"{place}/{i.name}") != i.size]
        _at_once(missing, lambda item: self._put(folder, place, item), progress)
        self._tell_of_others(folder, stored)
        self.remote.write(f"{place}/{MANIFEST}", content)
        self.remote.write(f"{stage}/{MANIFEST}", content)
        self._seen[stage] = stored.sha256
        self._write_note(folder, stored, "storage" if self.was_fetched(folder) else "home")
        with contextlib.suppress(UserError, TransientError):  # not every account may remove
            self.remote.remove(f"{stage}/{UNFINISHED}")

    def _put(self, folder: Path, place: str, item: Item) -> None:
        path, key = folder / item.name, f"{place}/{item.name}"
        if not path.exists() or sha256_file(path) != item.sha256:
            raise ArtefactError(
                f"{path} is not what its manifest says, so it is not published",
                hint=f"remove {folder} and run again",
            )
        self.remote.write(key, path)
        size = self.remote.size(key)
        if size != item.size:
            raise ArtefactError(
                f"{self.remote.address(key)} has {'no' if size is None else size} bytes after "
                f"{item.size} were written",
                hint="the storage does not keep what it accepts; look at it before going on",
            )

    def _tell_of_others(self, folder: Path, mine: Stored) -> None:
        """Warn when somebody else published something different while this was made."""
        stage = self.stage(folder)
        head = self.head(folder)
        if head is None or stage not in self._seen or head.sha256 == self._seen[stage]:
            return
        changed = differences(head.manifest.fingerprint, mine.manifest.fingerprint)
        if changed:
            LOGGER.warning(
                "%s: another run published this artefact meanwhile, made from other settings; "
                "this one becomes valid, the other stays findable: %s",
                self.address(folder),
                "; ".join(str(one) for one in changed),
            )

    # --- fetching -----------------------------------------------------------------------------

    def fetch(
        self,
        folder: Path,
        stored: Stored,
        *,
        make_room: Callable[[], None] | None = None,
        progress: Progress = _SILENT,
    ) -> None:
        """Make the folder a copy of a stored artefact.

        Everything is downloaded and checked beside the folder's files first; a fetch that was
        interrupted goes on with what it has. ``make_room`` is called before the folder's own
        artefact goes, to keep what a stage wants to keep; if it moves files, the manifest that
        names them must go first.

        Raises
        ------
        ArtefactError
            Naming the file that is missing in storage, or is not what the manifest says.
        UserError, TransientError
            When the place cannot be read.
        """
        with folder_lock(folder, "fetching from storage", wait_seconds=WAIT_SECONDS):
            if self.is_copy(folder) and self._note(folder)["manifest"] == stored.sha256:
                return  # another process did it while this one waited
            place = f"{self.stage(folder)}/made/{stored.version}"
            self.download(folder, {i: f"{place}/{i.name}" for i in stored.items}, progress)
            old = read_manifest(folder)
            if make_room is not None:
                make_room()
            (folder / MANIFEST).unlink(missing_ok=True)
            (folder / STORED_NOTE).unlink(missing_ok=True)
            for name in set(old.files if old else ()) - {item.name for item in stored.items}:
                (folder / name).unlink(missing_ok=True)
            place_files(folder, stored.items)
            write_bytes(folder / MANIFEST, stored.content)
            self._write_note(folder, stored, "storage")
            shutil.rmtree(folder / STAGING, ignore_errors=True)

    def download(self, folder: Path, keys: dict[Item, str], progress: Progress = _SILENT) -> None:
        """Bring files into the folder's staging area, checked, from where ``keys`` says."""
        _at_once(list(keys), lambda item: self._get(folder, keys[item], item), progress)

    def _get(self, folder: Path, key: str, item: Item) -> None:
        """Download one file unless it is in the staging area, or in the folder, already."""
        target = item.staged(folder)
        if target.exists():
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as temporary:
                if item.is_at(folder / item.name):
                    shutil.copyfile(folder / item.name, temporary)
                else:
                    self._get_checked(key, item, temporary)
        except OSError as error:
            raise UserError(
                f"cannot write {target}: {error.strerror or error}",
                hint="make room, or choose another --home",
            ) from error

    def _get_checked(self, key: str, item: Item, temporary: Path) -> None:
        """Download one file; once more when what came is not what the manifest says."""
        stage, name = key.partition("/made/")[0], PurePosixPath(item.name).name
        earlier = f"{stage}/objects/{item.sha256}/{name}"  # where format 1 has it
        for attempt in (1, 2):
            try:
                try:
                    self.remote.download(key, temporary)
                except FileNotFoundError:
                    self.remote.download(earlier, temporary)
            except FileNotFoundError as error:
                raise self._damaged(key, "is missing") from error
            except TransientError as error:
                # some libraries compare a checksum of their own, and tell it as any failure
                if attempt == 2:
                    raise
                LOGGER.warning("%s; reading it again", error)
                continue
            if item.is_at(temporary):
                return
            if attempt == 1:
                LOGGER.warning("%s came damaged, reading it again", self.remote.address(key))
        raise self._damaged(key, "is not what its manifest says: it was truncated or altered")

    def _damaged(self, key: str, what: str) -> ArtefactError:
        stage = key.partition("/made/")[0]
        return ArtefactError(
            f"{self.remote.address(key)} {what}",
            hint=f"remove {self.remote.address(stage)} there: a home that has the artefact "
            "publishes it again at its next run, any other makes it",
        )


def place_files(folder: Path, items: list[Item]) -> None:
    """Move downloaded files from the staging area to their names in the folder."""
    for item in items:
        target = folder / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        item.staged(folder).replace(target)


def _at_once(items: list[Item], move: Callable[[Item], object], progress: Progress) -> None:
    """Move files, a few at once, and report megabytes as they are done."""
    total, done = sum(item.size for item in items), 0
    with ThreadPoolExecutor(_AT_ONCE, "storage") as pool:
        try:
            for item, _ in zip(items, pool.map(move, items), strict=True):
                done += item.size
                progress.update(done // 1_000_000, max(total // 1_000_000, 1))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
