"""The model cards of the miniature world's base models."""

from pathlib import Path
from typing import Any


def write_card(folder: Path, record: dict[str, Any]) -> None:
    """Write `folder/README.md` from a training record."""
    (folder / "README.md").write_text(str(record["recipe"]["name"]) + "\n", "utf-8")
