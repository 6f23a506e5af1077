"""What a check of an asset is: a look at the finished artefact before anything builds on it.

A look reads the stored files afresh, never the engine's memory. It knows no Dagster; the asset
turns it into a blocking check. Each asset's own looks stand in its file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.orchestration.stages.stage import Stage


@dataclass(frozen=True)
class Inspection:
    """The outcome of one look at a finished artefact."""

    passed: bool
    message: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Check:
    """A blocking check: its name and description on the page, and the look."""

    name: str
    description: str
    look: Callable[[Stage, Manifest], Inspection]


def inspection(passed: bool, message: str, **facts: Any) -> Inspection:  # noqa: ANN401
    """Return an outcome; ``passed`` may be a truth value of any library."""
    return Inspection(bool(passed), message, facts)


def named(what: str, ids: Sequence[Any] | None) -> str:
    """Return the end of a message that names the first of the records that are wrong."""
    return f"; {what}: {', '.join(map(str, ids[:3]))}" if ids else ""


def query(sql: str, *parameters: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401 - SQL values
    """Run one query in a fresh in-memory DuckDB, bounded in memory."""
    import duckdb

    with duckdb.connect(config={"memory_limit": "1GB", "threads": 2}) as connection:
        return connection.execute(sql, list(parameters)).fetchall()
