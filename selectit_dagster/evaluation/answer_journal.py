"""The journal of a benchmark under way: one line per finished batch.

A line is written in one go and flushed to the disk, so what a killed evaluation leaves is
whole batches and at most one broken last line, which is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import sha256_json


class Journal:
    """Finished batches by number, stored beside the results until the evaluation is whole.

    Parameters
    ----------
    path:
        The journal's file.
    identity:
        What its batches depend on; a journal of something else is begun anew.
    """

    def __init__(self, path: Path, identity: Any) -> None:  # noqa: ANN401 - any JSON value
        self.path = path
        self._done: dict[str, Any] = {}
        header = {"identity": sha256_json(identity)}
        good = self._read(header)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = path.open("r+b" if good else "wb")
        self._handle.truncate(good)
        self._handle.seek(good)
        if not good:
            self._write(header)

    def _read(self, header: dict[str, str]) -> int:
        """Read the whole lines and return the offset after the last good one."""
        if not self.path.exists():
            return 0
        good = 0
        with self.path.open("rb") as handle:
            for number, line in enumerate(handle):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    break
                if not line.endswith(b"\n") or (number == 0 and value != header):
                    break
                if number:
                    if not isinstance(value, dict) or not isinstance(value.get("key"), str):
                        break
                    if "value" not in value:
                        break
                    self._done[value["key"]] = value["value"]
                good += len(line)
        return good

    def _write(self, value: dict[str, Any]) -> None:
        self._handle.write(json.dumps(value, ensure_ascii=True).encode() + b"\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def get(self, key: str) -> Any | None:  # noqa: ANN401 - any JSON value
        """Return what was stored under ``key``, or None."""
        return self._done.get(key)

    def put(self, key: str, value: Any) -> None:  # noqa: ANN401 - any JSON value
        """Store ``value`` under ``key``, on the disk when this returns."""
        self._write({"key": key, "value": value})
        self._done[key] = value

    def keep(self, key: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - any JSON value
        """Return what is stored under ``key``, or make it and store it."""
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value)
        return value

    def close(self) -> None:
        """Close the file; it stays for a later resume."""
        self._handle.close()
