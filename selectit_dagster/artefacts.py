"""Manifests: what an artefact was made from, what it holds, and whether it is whole.

An artefact is a folder. Its ``manifest.json`` is written last, so a folder without one is
not an artefact yet. The manifest carries

* ``fingerprint``: every named thing that the content depends on. Two artefacts with equal
  fingerprints are interchangeable; a differing field is named, stored and expected.
* ``digest``: one SHA-256 over the files' hashes. It is the Dagster data version: the same
  content leaves what is downstream fresh.
* ``files``: size and SHA-256 of every file, so that an altered or truncated one is found.
"""

from __future__ import annotations

import datetime as dt
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from selectit_dagster.errors import ArtefactError
from selectit_dagster.files import read_json, sha256_file, sha256_json, write_json

MANIFEST = "manifest.json"
Fingerprint = dict[str, Any]


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


def file_table(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return size in bytes and SHA-256 of each of ``names`` (paths relative to ``folder``)."""
    return {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": sha256_file(folder / name),
        }
        for name in sorted(names)
    }


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
    """
    table = file_table(folder, files)
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
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


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
    try:
        return Manifest(**read_json(path))
    except TypeError as error:
        raise ArtefactError(
            f"{path} is not a manifest of this project: {error}",
            hint=f"remove {folder} and run again",
        ) from error


def require_manifest(folder: Path, *, made_by: str) -> Manifest:
    """Return the manifest of ``folder``; name the stage that makes it when it is absent."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtefactError(
            f"{folder} holds no complete artefact (no {MANIFEST})",
            hint=f"materialise {made_by} first",
        )
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
    """Tell whether ``folder`` holds a complete artefact made from exactly ``fingerprint``."""
    manifest = read_manifest(folder)
    return manifest is not None and not differences(manifest.fingerprint, fingerprint)


def verify(folder: Path, *, hashes: bool = True) -> Manifest:
    """Check every file of an artefact against its manifest and return the manifest.

    Raises
    ------
    ArtefactError
        Naming the first file that is missing, of another size, or of another hash.
    """
    manifest = require_manifest(folder, made_by="the stage that writes it")
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.exists():
            raise ArtefactError(f"{path} is missing", hint=f"remove {folder} and run again")
        if path.stat().st_size != entry["bytes"] or (
            hashes and sha256_file(path) != entry["sha256"]
        ):
            raise ArtefactError(
                f"{path} is not what its manifest says: it was truncated or altered",
                hint=f"remove {folder} and run again",
            )
    return manifest
