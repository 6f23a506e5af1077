"""How a storage place is laid out, and what may be written into a folder from there.

Below the storage address::

    selectit-storage.json                          what this place is; proves that writing works
    experiments/<experiment>/<stage>/manifest.json the artefact that is valid now
    experiments/<experiment>/<stage>/made/<n>.json every artefact that was made, by fingerprint
    experiments/<experiment>/<stage>/unfinished.json  what of a stage under way is safe
    experiments/<experiment>/<stage>/objects/<sha256>/<file name>  their content

A manifest is the one of the home, byte for byte: a file's object follows from its name and its
SHA-256. Content is never replaced by other content, so a new artefact leaves every byte of the
one before where it is, and the single write of ``manifest.json`` is the switch between them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.artefacts.manifest import Fingerprint, Manifest
from selectit_dagster.errors import ArtefactError

MARKER = "selectit-storage.json"
FORMAT = 1
HEAD = "manifest.json"
MADE = "made"
OBJECTS = "objects"
UNFINISHED = "unfinished.json"
EXPERIMENTS = "experiments"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOREIGN = "something else wrote to this place: look at it, or choose another one"
_PRIVATE = ("manifest.json", ".lock", ".stored.json", ".fetch")


@dataclass(frozen=True)
class Item:
    """One file of an artefact: its name in the folder, its size in bytes, its hash."""

    name: str
    size: int
    sha256: str


def head_key(stage: str) -> str:
    """Return the key of a stage's valid manifest; ``stage`` is its path below the address."""
    return f"{stage}/{HEAD}"


def made_key(stage: str, fingerprint: Fingerprint) -> str:
    """Return the key under which an artefact with that fingerprint is found."""
    return f"{stage}/{MADE}/{sha256_json(fingerprint)[:32]}.json"


def unfinished_key(stage: str) -> str:
    """Return the key of the list of a stage's finished files."""
    return f"{stage}/{UNFINISHED}"


def object_key(stage: str, item: Item) -> str:
    """Return the key of a file's content."""
    return f"{stage}/{OBJECTS}/{item.sha256}/{PurePosixPath(item.name).name}"


def read_items(files: dict[str, Any], *, source: str) -> list[Item]:
    """Return a manifest's table of files, after a look at what it would write where.

    Raises
    ------
    ArtefactError
        When a name leads out of the folder or into our own notes, or an entry is malformed:
        what comes from outside is not trusted to name files.
    """
    items = []
    for name, entry in files.items():
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and path.parts
        own = path.parts[:1] and path.parts[0] in _PRIVATE
        try:
            item = Item(name, int(entry["bytes"]), str(entry["sha256"]))
        except (KeyError, TypeError, ValueError):
            item = Item(name, -1, "")
        if not inside or own or "\\" in name or item.size < 0:
            raise ArtefactError(
                f"{source}: {name!r} is no entry of a file in an artefact", hint=_FOREIGN
            )
        if not _SHA256.fullmatch(item.sha256):
            raise ArtefactError(f"{source}: {name!r} has no SHA-256", hint=_FOREIGN)
        items.append(item)
    return items


def parse_manifest(content: bytes, *, source: str) -> Manifest:
    """Return a manifest that was read from storage.

    Raises
    ------
    ArtefactError
        When it is not one of ours.
    """
    try:
        manifest = Manifest(**json.loads(content))
        read_items(manifest.files, source=source)
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{source} is not a manifest of this project", hint=_FOREIGN) from error
    return manifest


def parse_unfinished(content: bytes, *, source: str) -> tuple[Fingerprint, list[Item]]:
    """Return the fingerprint and the files of a list of unfinished work.

    Raises
    ------
    ArtefactError
        When it is not one of ours.
    """
    try:
        value = json.loads(content)
        files, fingerprint = dict(value["files"]), dict(value["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{source} is not a list of this project", hint=_FOREIGN) from error
    return fingerprint, read_items(files, source=source)
