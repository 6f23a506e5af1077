"""Publishing the artefacts of a home, and fetching them back.

The home keeps working folders; the storage place holds what is valid. Files go first, the
manifest last, by one write. What is fetched is checked against its manifest, byte for byte,
before any of it is seen in the home.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import read_json, sha256_file, write_bytes, write_json
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    Fingerprint,
    Manifest,
    differences,
    read_manifest,
)
from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.storage import layout
from selectit_dagster.storage.content import STAGING, Content, place, waited_lock
from selectit_dagster.storage.layout import Item
from selectit_dagster.storage.remote import Remote

LOGGER = logging.getLogger("selectit_dagster")
NOTE = ".stored.json"
_SILENT = Silent()


@dataclass(frozen=True)
class Stored:
    """A manifest as it lies in storage."""

    manifest: Manifest
    content: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest's own bytes."""
        return hashlib.sha256(self.content).hexdigest()

    def has(self, fingerprint: Fingerprint) -> bool:
        """Tell whether this was made from exactly ``fingerprint``."""
        return not differences(self.manifest.fingerprint, fingerprint)


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

    @property
    def content(self) -> Content:
        """Moves files there and back."""
        return Content(self.remote)

    # --- names --------------------------------------------------------------------------------

    def stage(self, folder: Path) -> str:
        """Return a folder's path below the storage address."""
        below = folder.relative_to(self.home.folder).as_posix()
        return f"{layout.EXPERIMENTS}/{self.home.experiment}/{below}".removesuffix("/.")

    def address(self, folder: Path) -> str:
        """Return where a folder's artefact is published."""
        return self.remote.address(self.stage(folder))

    # --- what is there ------------------------------------------------------------------------

    def check_place(self) -> None:
        """Make sure that this place can be read and written and is laid out as expected.

        Raises
        ------
        UserError
            For wrong credentials, missing rights, no such bucket, another layout.
        TransientError
            When it cannot be reached.
        """
        known = self.remote.read(layout.MARKER)
        if known is not None:
            try:
                version = json.loads(known)["format"]
            except (ValueError, KeyError, TypeError):
                version = None
            if version != layout.FORMAT:
                raise UserError(
                    f"{self.remote.address(layout.MARKER)} says format {version!r}, this version "
                    f"of selectit writes {layout.FORMAT}",
                    hint="use another place, or the version of selectit that made this one",
                )
        # written each time: a place that can only be read is found before anything is made
        self.remote.write(layout.MARKER, json.dumps({"format": layout.FORMAT}).encode() + b"\n")

    def state(self) -> tuple[bool, str]:
        """Return whether this place can be used, and a line that says so or why not."""
        try:
            self.check_place()
        except (UserError, TransientError) as error:
            return False, " ".join(str(error).split())
        return True, f"{self.remote.address()} (can be read and written)"

    def head(self, folder: Path) -> Stored | None:
        """Return the manifest that is valid now for a folder."""
        return self._stored(layout.head_key(self.stage(folder)))

    def made(self, folder: Path, fingerprint: Fingerprint) -> Stored | None:
        """Return the manifest of the artefact made from ``fingerprint``, valid now or before."""
        found = self._stored(layout.made_key(self.stage(folder), fingerprint))
        return found if found is not None and found.has(fingerprint) else None

    def _stored(self, key: str) -> Stored | None:
        content = self.remote.read(key)
        if content is None:
            return None
        return Stored(layout.parse_manifest(content, source=self.remote.address(key)), content)

    # --- whether a folder is a copy of what is stored -------------------------------------------

    def _note(self, folder: Path) -> dict[str, Any]:
        path = folder / NOTE
        return dict(read_json(path)) if path.exists() else {}

    def is_copy(self, folder: Path) -> bool:
        """Tell whether the folder's artefact was published to, or fetched from, this place."""
        note, path = self._note(folder), folder / MANIFEST
        return (
            note.get("url") == self.remote.url
            and path.exists()
            and note.get("manifest") == sha256_file(path)
        )

    def was_fetched(self, folder: Path) -> bool:
        """Tell whether the folder's artefact was made elsewhere."""
        return self.is_copy(folder) and self._note(folder).get("origin") == "storage"

    def is_published(self, folder: Path) -> bool:
        """Tell whether the folder's artefact is the valid one of this place."""
        if not self.is_copy(folder):
            return False
        head = self.remote.read(layout.head_key(self.stage(folder)))
        return (
            head is not None and hashlib.sha256(head).hexdigest() == self._note(folder)["manifest"]
        )

    def _write_note(self, folder: Path, stored: Stored, origin: str) -> None:
        write_json(
            folder / NOTE, {"url": self.remote.url, "manifest": stored.sha256, "origin": origin}
        )

    # --- publishing ---------------------------------------------------------------------------

    def remember(self, folder: Path) -> None:
        """Note what is valid now, so that :meth:`publish` can tell who wrote in between."""
        head = self.head(folder)
        self._seen[self.stage(folder)] = head.sha256 if head else None

    def publish(self, folder: Path, progress: Progress = _SILENT) -> None:
        """Write the folder's complete artefact to storage; nothing when it is there already.

        Files first, by content, only those that are missing; then the manifest under its
        fingerprint; last the valid manifest. Killed at any moment, the artefact that was
        valid before stays so, whole.

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
        stored = Stored(layout.parse_manifest(content, source=str(folder / MANIFEST)), content)
        stage = self.stage(folder)
        items = layout.read_items(stored.manifest.files, source=str(folder / MANIFEST))
        head = self.head(folder)
        valid = {entry["sha256"] for entry in head.manifest.files.values()} if head else set()
        self.content.upload(stage, folder, items, valid, progress)
        self._tell_of_others(folder, stored)
        self.remote.write(layout.made_key(stage, stored.manifest.fingerprint), content)
        self.remote.write(layout.head_key(stage), content)
        self._seen[stage] = stored.sha256
        self._write_note(folder, stored, "storage" if self.was_fetched(folder) else "home")
        self.forget_unfinished(folder)

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
            Naming the object that is missing, or is not what the manifest says.
        UserError, TransientError
            When the place cannot be read.
        """
        items = layout.read_items(stored.manifest.files, source=self.address(folder))
        with waited_lock(folder, "fetching from storage"):
            if self.is_copy(folder) and self._note(folder)["manifest"] == stored.sha256:
                return  # another process did it while this one waited
            self.content.download(self.stage(folder), folder, items, progress)
            old = read_manifest(folder)
            if make_room is not None:
                make_room()
            (folder / MANIFEST).unlink(missing_ok=True)
            (folder / NOTE).unlink(missing_ok=True)
            for name in set(old.files if old else ()) - {item.name for item in items}:
                (folder / name).unlink(missing_ok=True)
            place(folder, items)
            write_bytes(folder / MANIFEST, stored.content)
            self._write_note(folder, stored, "storage")
            shutil.rmtree(folder / STAGING, ignore_errors=True)

    # --- work under way -----------------------------------------------------------------------

    def unfinished(self, folder: Path) -> tuple[Fingerprint, list[Item]] | None:
        """Return the fingerprint and the safe files of a stage that did not end."""
        key = layout.unfinished_key(self.stage(folder))
        content = self.remote.read(key)
        if content is None:
            return None
        fingerprint, items = layout.parse_unfinished(content, source=self.remote.address(key))
        return (fingerprint, items) if items else None

    def note_unfinished(self, folder: Path, fingerprint: Fingerprint, items: list[Item]) -> None:
        """Replace the list of a stage's safe files; their content must be there already."""
        files = {item.name: {"bytes": item.size, "sha256": item.sha256} for item in items}
        value = {
            "fingerprint": fingerprint,
            "files": files,
            "written_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }
        key = layout.unfinished_key(self.stage(folder))
        self.remote.write(key, json.dumps(value).encode())

    def forget_unfinished(self, folder: Path) -> None:
        """Empty the list of a stage's safe files: its artefact is complete."""
        if self.remote.entry(layout.unfinished_key(self.stage(folder))) is not None:
            self.note_unfinished(folder, {}, [])
