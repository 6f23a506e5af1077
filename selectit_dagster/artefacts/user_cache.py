"""What is remembered between runs in the user's cache folder; losing it costs time alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import read_json, sha256_json, write_json
from selectit_dagster.errors import UserError


def cache_folder() -> Path:
    """Return the user's cache folder of this project (``$XDG_CACHE_HOME`` is honoured)."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "selectit-dagster"


def remembered(kind: str, key: Any, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return the value that an earlier run found for a key, or make it and keep it.

    Parameters
    ----------
    kind, name:
        The folder of such values, and what a file calls its value.
    key:
        JSON of everything that the value depends on.
    make:
        Finds the value; None is not kept.
    """
    entry = cache_folder() / kind / f"{sha256_json(key)}.json"
    with contextlib.suppress(UserError, KeyError, TypeError):
        return read_json(entry)[name]
    value = make()
    # a cache that cannot be written only costs time
    if value is not None:
        with contextlib.suppress(UserError, OSError):
            write_json(entry, {name: value})
    return value
