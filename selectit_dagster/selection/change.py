"""What a new selection changed: what entered, what left, and why."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.errors import ArtefactError
from selectit_dagster.selection.dataset_writer import DATASET_FILE

CANDIDATES_FILE = "candidates.parquet"
_EXAMPLES = 20

REASONS = {
    "new record": "it was not among the candidates before",
    "removed record": "it is no longer among the candidates",
    "score rose": "its own score rose over the cut",
    "score fell": "its own score fell below the cut",
    "cut moved": "its own score stayed, others or the size changed",
}


@dataclass(frozen=True)
class Moved:
    """One record that entered or left, with its ranks and scores before and after."""

    record_id: str
    reason: str
    old_rank: int | None
    new_rank: int | None
    old_score: float | None
    new_score: float | None


@dataclass(frozen=True)
class SelectionChange:
    """The difference between two selections of one arm.

    Attributes
    ----------
    kept:
        Number of records in both.
    entered, left:
        Numbers by reason (the keys of :data:`REASONS`).
    examples:
        The first records that entered and left, by new and old rank.
    """

    kept: int
    entered: dict[str, int]
    left: dict[str, int]
    examples: dict[str, list[Moved]]

    def summary(self) -> dict[str, Any]:
        """Return plain data for a manifest."""
        return {
            "kept": self.kept,
            "entered": sum(self.entered.values()),
            "left": sum(self.left.values()),
            "entered_by_reason": self.entered,
            "left_by_reason": self.left,
            "examples": {k: [vars(m) for m in moved] for k, moved in self.examples.items()},
            "text": self.text(),
        }

    def text(self) -> str:
        """Return one plain sentence."""
        if not self.entered and not self.left:
            return f"The selection is the same {self.kept:,} records as before."
        parts = [f"{self.kept:,} records stayed"]
        for verb, table in (("entered", self.entered), ("left", self.left)):
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(table.items()))
            parts.append(f"{sum(table.values()):,} {verb}" + (f" ({reasons})" if reasons else ""))
        return "; ".join(parts) + "."


def compare_selections(
    old: Path, new: Path, *, work: Workspace | None = None, tolerance: float = 1e-9
) -> SelectionChange:
    """Compare two selections of the arm ``selectit``, each with its candidates beside it.

    Parameters
    ----------
    old, new:
        Folders of two selected datasets.
    work:
        An open workspace to compare in; default: a temporary one.
    tolerance:
        Scores that differ by no more are the same.

    Raises
    ------
    ArtefactError
        When one of the folders lacks its files.
    """
    for folder in (old, new):
        for name in (DATASET_FILE, CANDIDATES_FILE):
            if not (folder / name).exists():
                raise ArtefactError(
                    f"{folder} holds no {name}: not a selection by SelectIT",
                    hint="give the folder of a selected set, or make it again",
                )
    with _workspace(work) as open_work:
        return _compare(old, new, open_work, tolerance)


@contextlib.contextmanager
def _workspace(work: Workspace | None) -> Iterator[Workspace]:
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory() as folder, Workspace(Path(folder)) as own:
        yield own


def _compare(old: Path, new: Path, work: Workspace, tolerance: float) -> SelectionChange:
    chosen = {name: work.table(folder / DATASET_FILE) for name, folder in _named(old, new)}
    all_of = {name: work.table(folder / CANDIDATES_FILE) for name, folder in _named(old, new)}
    kept = work.row(
        f"SELECT count(*) FROM {chosen['old']} SEMI JOIN {chosen['new']} USING (record_id)"
    )
    tables: dict[str, dict[str, int]] = {}
    examples: dict[str, list[Moved]] = {}
    for verb, present, absent in (("entered", "new", "old"), ("left", "old", "new")):
        query = (
            "SELECT record_id, o.rank, n.rank, o.score, n.score FROM "
            f"(SELECT record_id FROM {chosen[present]} "
            f"ANTI JOIN {chosen[absent]} USING (record_id)) "
            f"LEFT JOIN {all_of['old']} o USING (record_id) "
            f"LEFT JOIN {all_of['new']} n USING (record_id) "
            f"ORDER BY {present[0]}.rank, record_id"
        )
        reasons: Counter[str] = Counter()
        found: list[Moved] = []
        for batch in work.batches(query):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                reason = _reason(verb, tolerance, *row[1:])
                reasons[reason] += 1
                if len(found) < _EXAMPLES:
                    found.append(Moved(row[0], reason, *row[1:]))
        tables[verb], examples[verb] = dict(reasons), found
    return SelectionChange(int(str(kept[0])), tables["entered"], tables["left"], examples)


def _named(old: Path, new: Path) -> list[tuple[str, Path]]:
    return [("old", old), ("new", new)]


def _reason(
    verb: str,
    tolerance: float,
    old_rank: int | None,
    new_rank: int | None,
    old_score: float | None,
    new_score: float | None,
) -> str:
    if old_rank is None:
        return "new record"
    if new_rank is None:
        return "removed record"
    if old_score is None or new_score is None:
        return "cut moved"  # an arm without scores
    change = new_score - old_score
    if verb == "entered" and change > tolerance:
        return "score rose"
    if verb == "left" and change < -tolerance:
        return "score fell"
    return "cut moved"
