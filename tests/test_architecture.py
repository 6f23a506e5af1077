"""The picture of the rooms shows the imports that there are, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW_EVERYTHING = {"errors", "progress", "display", "registry", "local_servers"}


def drawn() -> set[tuple[str, str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = text.partition("```mermaid")[2].partition("```")[0]
    arrows = set()
    for line in picture.splitlines():
        room, arrow, others = line.partition(" --> ")
        if arrow:
            arrows |= {(room.strip(), other.strip()) for other in others.split("&")}
    return arrows


def imported() -> set[tuple[str, str]]:
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("selectit_dagster", exclude_type_checking_imports=True)

    def room(module: str) -> str:
        return module.split(".")[1] if "." in module else ""

    found = {
        (room(module), room(other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    }
    return {
        (one, other)
        for one, other in found
        if one and other and one != other and other not in BELOW_EVERYTHING
        if not one.startswith("__") and one not in BELOW_EVERYTHING
    }


def test_the_arrows_of_the_picture_are_the_imports():
    assert drawn() == imported()


def test_every_room_is_described():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "selectit_dagster"
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert {room for room in rooms if not re.search(rf"`{room}/`", text)} == set()
