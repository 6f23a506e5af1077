"""The selection before the present one: kept when it is replaced, compared with what came."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import staged_folder
from selectit_dagster.artefacts.manifest import read_manifest


def previous_folder(folder: Path) -> Path:
    """Return where the selection before the present one is kept, for their comparison."""
    return folder.with_name(f".{folder.name}.previous")


def keep_previous(folder: Path) -> None:
    """Keep a complete selection beside its folder before it is replaced (hard links)."""
    if read_manifest(folder) is None:
        return
    old = previous_folder(folder)
    shutil.rmtree(old, ignore_errors=True)
    with staged_folder(old) as stage:
        for path in folder.iterdir():
            if path.is_file():
                os.link(path, stage / path.name)


def last_change(folder: Path) -> dict[str, Any] | None:
    """Return what entered and left since the selection before, None where there is none."""
    from selectit_dagster.selection.change import compare_selections

    old = previous_folder(folder)
    if read_manifest(old) is None:
        return None
    return compare_selections(old, folder).summary()


def moved(change: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records that entered and left, as table rows."""
    return [
        {"moved": verb, **{name: "-" if v is None else v for name, v in record.items()}}
        for verb, records in change["examples"].items()
        for record in records
    ]
