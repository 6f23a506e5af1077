"""Where a browser finds the two pages of a home.

Links are written into Dagster and MLflow while a run goes on, often before anybody serves the
pages. So a home chooses its ports once, when it is first asked, and ``selectit ui`` takes the
same ones as long as they are free.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration.services import LOOPBACK, free_port

PORTS_FILE = "ports.json"
_PREFERRED = {"dagster": 3000, "mlflow": 5000}


@dataclass(frozen=True)
class Ports:
    """The ports of a home's pages."""

    dagster: int
    mlflow: int


def ports(root: Path) -> Ports:
    """Return a home's ports; they are chosen, free ones, and kept, at the first call."""
    with contextlib.suppress(UserError, ValueError, TypeError, KeyError):
        known = read_json(root / PORTS_FILE)
        if known.get("home", str(root)) != str(root):
            raise ValueError  # a copy: both homes may be served at once
        return Ports(int(known["dagster"]), int(known["mlflow"]))
    chosen = Ports(**{name: free_port(port) for name, port in _PREFERRED.items()})
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / PORTS_FILE, {**asdict(chosen), "home": str(root)})
    return chosen


def dagster_address(root: Path) -> str:
    """Return Dagster's address: ``$SELECTIT_DAGSTER_UI``, else that of this home."""
    given = os.environ.get("SELECTIT_DAGSTER_UI") or f"http://{LOOPBACK}:{ports(root).dagster}"
    return given.rstrip("/")


def mlflow_address(root: Path) -> str:
    """Return the address of this home's MLflow page."""
    return f"http://{LOOPBACK}:{ports(root).mlflow}"
