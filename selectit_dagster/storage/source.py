"""A dataset at an address: a checked local copy of it, made again only when it has changed."""

from __future__ import annotations

import os
from pathlib import Path

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.storage.remote import Remote


def _split(url: str) -> tuple[Remote, str]:
    """Return the place that holds a file, and the file's name there."""
    folder, _, name = url.rpartition("/")
    return Remote(folder), name


def exists(url: str) -> bool:
    """Tell whether there is a file at an address.

    Raises
    ------
    UserError, TransientError
        When that cannot be found out.
    """
    place, name = _split(url)
    return place.entry(name) is not None


def token(url: str) -> str:
    """Return a short text that changes when the file at an address does.

    Raises
    ------
    UserError
        When there is no such file.
    """
    place, name = _split(url)
    try:
        return place.token(name)
    except FileNotFoundError as error:
        raise _missing(url) from error


def local_copy(url: str, folder: Path) -> Path:
    """Return a copy of the file at ``url`` in ``folder``, downloaded when it has changed.

    Raises
    ------
    UserError
        When there is no such file, it may not be read, or it changes while it is read.
    TransientError
        When it cannot be reached.
    """
    place, name = _split(url)
    target, note = folder / name, folder / f"{name}.source.json"
    now = {"url": url, "token": token(url)}
    if target.exists() and note.exists() and read_json(note) == now:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}.part"
    try:
        place.download(name, temporary)
        if token(url) != now["token"]:
            raise PassingError(
                f"{url} was changed while it was read", hint="run again when it is complete"
            )
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        note.unlink(missing_ok=True)
        temporary.replace(target)
    except FileNotFoundError as error:
        raise _missing(url) from error
    finally:
        temporary.unlink(missing_ok=True)
    write_json(note, now)
    return target


def _missing(url: str) -> UserError:
    return UserError(f"the dataset {url} does not exist", hint="check dataset.path")
