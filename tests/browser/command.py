"""The ``selectit`` command of this checkout, installed or not."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def selectit(*arguments: str) -> list[str]:
    """Return the arguments that start the command with this Python."""
    code = "from selectit_dagster.cli.main import main; main()"
    return [sys.executable, "-c", code, *arguments]
