"""What a check of an asset is: a look at the finished artefact before anything builds on it.

A look reads the stored files afresh, never the engine's memory. Each asset's own stand in its file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.orchestration.stages.stage import Stage

Look = TypeVar("Look", bound=Callable[..., dg.AssetCheckResult])


@dataclass(frozen=True)
class Made:
    """A finished artefact: the stage that made it, and its manifest."""

    stage: Stage
    manifest: Manifest

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.stage.folder

    @property
    def details(self) -> dict[str, Any]:
        """What the engine noted of its work."""
        return self.manifest.details

    @property
    def counts(self) -> dict[str, int]:
        """How many of what it holds."""
        return self.manifest.counts


def check(description: str) -> Callable[[Look], Look]:
    """Make a method of an asset one of its blocking checks, under the method's name."""

    def mark(look: Look) -> Look:
        look.check = description  # type: ignore[attr-defined]
        return look

    return mark


def inspection(
    passed: bool,
    message: str,
    wrong: Sequence[Any] = (),
    what: str = "records",
    **facts: Any,  # noqa: ANN401
) -> dg.AssetCheckResult:
    """Return an outcome whose message ends with the first of what is ``wrong``, by name.

    ``passed`` may be a truth value of any library.
    """
    named = f"; {what}: {', '.join(map(str, wrong[:3]))}" if wrong else ""
    return dg.AssetCheckResult(passed=bool(passed), description=message + named, metadata=facts)


def query(sql: str, *parameters: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401 - SQL values
    """Run one query in a fresh in-memory DuckDB, bounded in memory; a path is a parameter too."""
    import duckdb

    given = [str(p) if isinstance(p, Path) else p for p in parameters]
    with duckdb.connect(config={"memory_limit": "1GB", "threads": 2}) as connection:
        return connection.execute(sql, given).fetchall()


def record_ids(path: Path) -> tuple[int, int, list[str]]:
    """Return a Parquet file's rows, its distinct ids, and the first that occur more than once."""
    return query(
        """
        with n as (select record_id, count(*) n from read_parquet($1) group by 1)
        select coalesce(sum(n), 0)::bigint, count(*),
               coalesce((list(record_id order by record_id) filter (n > 1))[:3], []) from n
        """,
        path,
    )[0]
