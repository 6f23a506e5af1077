"""Manifests: what an artefact was made from, what it holds, and whether it is whole.

An artefact is a folder. Its ``manifest.json`` is written last, so a folder without one is
not an artefact yet. The manifest carries

* ``fingerprint``: every named thing that the content depends on. Two artefacts with equal
  fingerprints are interchangeable; a differing field is named, stored and expected.
* ``digest``: one SHA-256 over the files' hashes. It is the Dagster data version: the same
  content leaves what is downstream fresh.
* ``files``: size and SHA-256 of every file, so that an altered or truncated one is found.
* ``seal``: the SHA-256 of the manifest itself without this field, for the same reason.

Whatever builds on an artefact goes through :func:`require_manifest` or :func:`is_current`,
which look at every file first. A file is hashed once per process, and again when its size, its
times or its inode have changed.
"""

from __future__ import annotations

import datetime as dt
import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, get_origin, get_type_hints

from selectit_dagster.artefacts.accounting import check_counts
from selectit_dagster.artefacts.files import (
    folder_lock,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
)
from selectit_dagster.errors import ArtefactError

MANIFEST = "manifest.json"
# files that lie in an artefact's folder and are no part of it
STORED_NOTE, STAGING = ".stored.json", ".fetch"
OWN_NOTES = (MANIFEST, ".lock", STORED_NOTE, STAGING)
_SHA256 = re.compile(r"[0-9a-f]{64}")
Fingerprint = dict[str, Any]
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class Manifest:
    """The record of one complete artefact; see the module's docstring for the fields."""

    kind: str
    fingerprint: Fingerprint
    digest: str
    files: dict[str, dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created_at: str = ""
    seconds: float = 0.0
    seal: str = ""


@dataclass(frozen=True)
class Difference:
    """One fingerprint field on which a stored artefact and a request disagree."""

    name: str
    stored: Any
    expected: Any

    def __str__(self) -> str:
        return f"{self.name}: stored {self.stored!r}, expected {self.expected!r}"


def library_versions(*names: str) -> dict[str, str]:
    """Return the installed versions of ``names`` (absent ones are left out) and Python's."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def digest_of(files: dict[str, dict[str, Any]]) -> str:
    """Return the digest over a manifest's file table."""
    return sha256_json({name: entry["sha256"] for name, entry in files.items()})


# by path: what the file was like when it was hashed, and its hash
_HASHES: dict[str, tuple[tuple[int, ...], str]] = {}


def _hash_of(path: Path) -> str:
    """Return a file's SHA-256, from memory where the file has not changed since."""
    stat = path.stat()
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    known = _HASHES.get(str(path))
    if known is not None and known[0] == state:
        return known[1]
    digest = sha256_file(path)
    # a change within the clock's grain after this one would not show
    if time.time() - stat.st_mtime > _SETTLED_SECONDS:
        _HASHES[str(path)] = (state, digest)
    return digest


def write_manifest(
    folder: Path,
    *,
    kind: str,
    fingerprint: Fingerprint,
    files: list[str],
    counts: dict[str, int] | None = None,
    details: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
    seconds: float = 0.0,
    digest: str | None = None,
) -> Manifest:
    """Hash ``files``, write ``folder/manifest.json`` last, and return it.

    ``digest`` replaces the digest over the files where the content has a better identity
    (for instance when a file holds times that say nothing about the content).

    Raises
    ------
    RecordsLostError
        When the stage's counts do not add up; nothing is written then.
    """
    check_counts(kind, counts or {}, folder)
    table = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _hash_of(folder / name)}
        for name in sorted(files)
    }
    manifest = Manifest(
        kind=kind,
        fingerprint=fingerprint,
        digest=digest or digest_of(table),
        files=table,
        counts=counts or {},
        details=details or {},
        versions=versions or library_versions(),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
    )
    manifest = replace(manifest, seal=_seal(asdict(manifest)))
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def _seal(value: dict[str, Any]) -> str:
    """Return the hash of a manifest as it is read back from its file."""
    rest = {name: entry for name, entry in value.items() if name != "seal"}
    return sha256_json(json.loads(json.dumps(rest)))


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of ``folder``, or None when the artefact is not there yet.

    Raises
    ------
    ArtefactError
        When the manifest is there but is not one of ours.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    return parsed_manifest(read_json(path), source=str(path), hint=f"remove {folder} and run again")


def parsed_manifest(value: Any, *, source: str, hint: str) -> Manifest:  # noqa: ANN401 - what was read
    """Return the manifest that was read as ``value``.

    Raises
    ------
    ArtefactError
        When it is none of ours: it lacks a field, names a file outside of the folder or one of
        our own notes, or was altered.
    """

    def refuse(why: str) -> NoReturn:
        raise ArtefactError(f"{source} is not a manifest of this project: {why}", hint=hint)

    try:
        manifest = Manifest(**value)
    except TypeError as error:
        refuse(str(error))
    for name, form in get_type_hints(Manifest).items():
        kind = get_origin(form) or form
        if not isinstance(getattr(manifest, name), (kind, int) if kind is float else kind):
            refuse(f"{name} is no {kind.__name__}")
    for name, entry in manifest.files.items():
        if not _is_file_entry(name, entry):
            refuse(f"its entry {name!r} is no file of the artefact")
    if manifest.seal and manifest.seal != _seal(value):
        raise ArtefactError(
            f"{source} is not what it was when it was written: its seal does not match", hint=hint
        )
    return manifest


def _is_file_entry(name: str, entry: Any) -> bool:  # noqa: ANN401 - whatever the file holds
    """Tell whether a file of the table lies inside the folder and has size and hash."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    if not inside or path.parts[0] in OWN_NOTES or {"\x00", "\\"} & set(name):
        return False
    sized = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and entry["bytes"] >= 0
    return sized and _SHA256.fullmatch(str(entry.get("sha256"))) is not None


def require_manifest(folder: Path, *, made_by: str) -> Manifest:
    """Return the manifest of ``folder`` after a look at every file.

    Raises
    ------
    ArtefactError
        When there is no artefact, naming the stage that makes it, or when a file is not what
        the manifest says, naming the file.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtefactError(
            f"{folder} holds no complete artefact (no {MANIFEST})",
            hint=f"materialise {made_by} first",
        )
    _check_files(folder, manifest)
    return manifest


def differences(stored: Fingerprint, expected: Fingerprint) -> list[Difference]:
    """Return the fields on which two fingerprints disagree, by name."""
    absent = "(absent)"
    return [
        Difference(name, stored.get(name, absent), expected.get(name, absent))
        for name in sorted({*stored, *expected})
        if stored.get(name, absent) != expected.get(name, absent)
    ]


def is_current(folder: Path, fingerprint: Fingerprint) -> bool:
    """Tell whether ``folder`` holds a complete artefact made from exactly ``fingerprint``.

    Raises
    ------
    ArtefactError
        When it does but a file is not what the manifest says: truncated, altered or gone.
    """
    manifest = read_manifest(folder)
    if manifest is None or differences(manifest.fingerprint, fingerprint):
        return False
    _check_files(folder, manifest)
    return True


@dataclass(frozen=True)
class Content:
    """What a stage made: its files, and what its manifest says of them."""

    files: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    digest: str | None = None


def make_or_current(
    folder: Path,
    *,
    kind: str,
    fingerprint: Fingerprint,
    make: Callable[[], Content],
    keep_old: bool = False,
) -> Manifest:
    """Return the folder's current artefact, or make it under the folder's lock.

    ``make`` writes the files; the manifest follows. The old manifest goes first, so that no
    manifest stands over files that are being replaced; with ``keep_old`` the maker sees to it.

    Raises
    ------
    UserError
        When another process holds the folder.
    ArtefactError
        When a file of the current artefact is not what its manifest says.
    """
    if not is_current(folder, fingerprint):
        began = time.monotonic()
        with folder_lock(folder, kind.replace("_", " ")):
            if not is_current(folder, fingerprint):  # made by another process meanwhile
                if not keep_old:
                    (folder / MANIFEST).unlink(missing_ok=True)
                made, seconds = vars(make()), time.monotonic() - began
                return write_manifest(
                    folder, kind=kind, fingerprint=fingerprint, seconds=seconds, **made
                )
    return require_manifest(folder, made_by=kind)


def verify(folder: Path) -> Manifest:
    """Return the manifest of a folder that someone names, after a look at every file.

    Raises
    ------
    ArtefactError
        Naming the first file that is missing, of another size, or of another hash.
    """
    return require_manifest(folder, made_by="the stage that writes it")


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{path} is missing", hint=f"remove {folder} and run again")
        if path.stat().st_size != entry["bytes"] or _hash_of(path) != entry["sha256"]:
            raise ArtefactError(
                f"{path} is not what its manifest says: it was truncated or altered",
                hint=f"remove {folder} and run again",
            )
