"""Two selections compared: the settings that differ, the cut that moved, what entered and left."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.manifest import Manifest, read_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.selection.dataset_writer import DATASET_FILE

CANDIDATES_FILE = "candidates.parquet"
_EXAMPLES = 20
_TOLERANCE = 1e-9
# settings that leave every record's own score and order as they are
_NO_SCORE = ("size", "review")

REASONS = {
    "new record": "it was not among the candidates before",
    "record gone": "it is no longer among the candidates",
    "mark": "a person marked it keep or drop, or took that back",
    "settings": "it was scored or ordered with other settings",
    "score rose": "its own score rose over the cut",
    "score fell": "its own score fell below the cut",
    "score changed": "its own score changed, of which neither the high nor the low ones are best",
    "drawn": "the arm is drawn: the place that the seed gives it came to lie on this side",
    "order moved": "the arm orders without a score, and its order changed",
    "cut moved": "its own score stayed, others or the size changed",
    "quota": "its rank alone would say otherwise: a quota or the diversity decided",
    "candidates unknown": "the earlier selection kept no list of its candidates",
}


@dataclass(frozen=True)
class Moved:
    """One record with its ranks and scores before and after."""

    record_id: str
    reason: str
    old_rank: int | None
    new_rank: int | None
    old_score: float | None
    new_score: float | None


@dataclass(frozen=True)
class Difference:
    """The difference between two selections of one arm.

    Attributes
    ----------
    settings:
        The settings that differ: ``name``, ``old``, ``new``.
    kept, reordered:
        Number of records in both, and of those among them whose rank changed.
    cut:
        Score of the last chosen record, before and after.
    entered, left:
        Numbers by reason (the keys of :data:`REASONS`).
    examples:
        The first records that entered and left, and those that moved farthest.
    score_means:
        What the scores are.
    """

    settings: list[dict[str, Any]]
    kept: int
    reordered: int
    cut: list[float | None]
    entered: dict[str, int]
    left: dict[str, int]
    examples: dict[str, list[Moved]] = field(default_factory=dict)
    score_means: str = ""

    def summary(self) -> dict[str, Any]:
        """Return plain data for a file."""
        return {
            **asdict(self),
            "entered": sum(self.entered.values()),
            "left": sum(self.left.values()),
            "entered_by_reason": self.entered,
            "left_by_reason": self.left,
            "text": self.text(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the records that entered, left and moved, as table rows."""
        return moved_rows(self.summary())

    def text(self) -> str:
        """Return the difference in one or two plain sentences."""
        named = ", ".join(f"{s['name']} {s['old']} → {s['new']}" for s in self.settings)
        lead = f"Settings differ: {named}. " if named else ""
        if not self.entered and not self.left:
            order = f", {self.reordered:,} at another rank" if self.reordered else ""
            return f"{lead}The selection is the same {self.kept:,} records as before{order}."
        parts = [f"{self.kept:,} records stayed"]
        for verb, table in (("entered", self.entered), ("left", self.left)):
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(table.items()))
            parts.append(f"{sum(table.values()):,} {verb}" + (f" ({reasons})" if reasons else ""))
        old, new = self.cut
        if old is not None and new is not None and abs(old - new) > _TOLERANCE:
            of = f" ({self.score_means})" if self.score_means else ""
            parts.append(f"the cut moved from {old:.4g} to {new:.4g}{of}")
        return f"{lead}{'; '.join(parts)}."


def moved_rows(change: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of a difference's summary as table rows."""
    return [
        {"moved": verb, **{name: "-" if v is None else v for name, v in record.items()}}
        for verb, records in change["examples"].items()
        for record in records
    ]


def compare_selections(old: Path, new: Path, *, examples: int = _EXAMPLES) -> Difference:
    """Compare two selections of one arm, each with its candidates beside it.

    Parameters
    ----------
    old, new:
        Folders of two selected datasets.
    examples:
        How many records are named for each of entered, left and moved.

    Raises
    ------
    ArtefactError
        When one of the folders lacks its files.
    """
    sides = [_Side.of(folder) for folder in (old, new)]
    with tempfile.TemporaryDirectory() as folder, Workspace(Path(folder)) as work:
        return _compare(sides[0], sides[1], work, examples)


@dataclass(frozen=True)
class _Side:
    """One of the two selections: its files and what its manifest says."""

    folder: Path
    manifest: Manifest

    @classmethod
    def of(cls, folder: Path) -> _Side:
        manifest = read_manifest(folder)
        if manifest is None or not (folder / DATASET_FILE).exists():
            raise ArtefactError(
                f"{folder} holds no {DATASET_FILE}: not a selection by SelectIT",
                hint="give the folder of a selected set, or make it again",
            )
        return cls(folder, manifest)

    @property
    def has_candidates(self) -> bool:
        return (self.folder / CANDIDATES_FILE).exists()

    @property
    def knows_candidates(self) -> bool:
        # every candidate is chosen there
        return self.has_candidates or self.manifest.details.get("kind") == "full"

    @property
    def settings(self) -> dict[str, Any]:
        """What decided the selection, one entry a setting; the count counts under its rule."""
        details = self.manifest.details
        stated = dict(details.get("settings") or {})
        for rule, size in (details.get("size") or {}).items():
            stated["size"] = f"{rule} {size:g}"
        if details.get("seed") is not None:
            stated["seed"] = details["seed"]
        return stated

    def tables(self, work: Workspace) -> tuple[str, str]:
        chosen = work.table(self.folder / DATASET_FILE)
        return chosen, work.table(self.folder / CANDIDATES_FILE) if self.has_candidates else chosen


def differing(old: _Side, new: _Side) -> list[dict[str, Any]]:
    """Return the settings on which two selections differ.

    A setting that is not stated is at its default; a selection of before settings were stated
    is compared on what it says.
    """
    before, after = old.settings, new.settings
    stated = all("settings" in side.manifest.details for side in (old, new))
    names = {*before} | {*after} if stated else {*before} & {*after}
    return [
        {"name": name, "old": before.get(name, "default"), "new": after.get(name, "default")}
        for name in sorted(names)
        if before.get(name) != after.get(name)
    ]


def _compare(old: _Side, new: _Side, work: Workspace, examples: int) -> Difference:
    settings = differing(old, new)
    (old_chosen, old_all), (new_chosen, new_all) = old.tables(work), new.tables(work)
    both = f"FROM {old_chosen} o JOIN {new_chosen} n USING (record_id)"
    kept, reordered = work.row(f"SELECT count(*), count(*) FILTER (o.rank <> n.rank) {both}")
    judge = _Judge(old, new, bool([s for s in settings if s["name"] not in _NO_SCORE]), work)
    counts: dict[str, dict[str, int]] = {}
    found: dict[str, list[Moved]] = {}
    for verb, present, absent, side in (
        ("entered", new_chosen, old_chosen, "n"),
        ("left", old_chosen, new_chosen, "o"),
    ):
        query = (
            "SELECT record_id, o.rank, n.rank, o.score, n.score FROM "
            f"(SELECT record_id FROM {present} ANTI JOIN {absent} USING (record_id)) "
            f"LEFT JOIN {old_all} o USING (record_id) LEFT JOIN {new_all} n USING (record_id) "
            f"ORDER BY {side}.rank, record_id"
        )
        reasons: Counter[str] = Counter()
        found[verb] = []
        for row in _rows(work, query):
            reason = judge.reason(verb, *row)
            reasons[reason] += 1
            if len(found[verb]) < examples:
                found[verb].append(Moved(row[0], reason, *row[1:]))
        counts[verb] = dict(reasons)
    farthest = (
        f"SELECT record_id, o.rank, n.rank, o.score, n.score {both} WHERE o.rank <> n.rank "
        f"ORDER BY abs(o.rank - n.rank) DESC, record_id LIMIT {examples}"
    )
    found["moved"] = [Moved(row[0], "rank", *row[1:]) for row in _rows(work, farthest)]
    cut = [judge.old_cut, judge.new_cut]
    return Difference(
        settings,
        int(str(kept)),
        int(str(reordered)),
        cut,
        counts["entered"],
        counts["left"],
        found,
        str(new.manifest.details.get("score_means") or ""),
    )


def _rows(work: Workspace, query: str) -> Iterator[tuple[Any, ...]]:
    for batch in work.batches(query):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class _Judge:
    """Why a record entered or left."""

    def __init__(self, old: _Side, new: _Side, settings_differ: bool, work: Workspace) -> None:
        self.settings_differ = settings_differ
        said = (side.manifest.details.get("review", {}) for side in (old, new))
        marks = [{(m, name) for m in ("keep", "drop") for name in r.get(m, ())} for r in said]
        self.marked = {name for _, name in marks[0] ^ marks[1]}
        self.known = {"entered": old.knows_candidates, "left": new.knows_candidates}
        self.sizes = [side.manifest.counts.get("selected", 0) for side in (old, new)]
        self.drawn = new.manifest.details.get("seed") is not None
        better = new.manifest.details.get("higher_is_better", True)
        self.sign = 0 if better is None else (1 if better else -1)
        self.old_cut, self.new_cut = (
            self._cut(work, side.folder / DATASET_FILE) for side in (old, new)
        )

    @staticmethod
    def _cut(work: Workspace, path: Path) -> float | None:
        value = work.row(f"SELECT arg_max(score, rank) FROM {work.table(path)}")[0]
        return None if value is None else float(str(value))

    def reason(
        self,
        verb: str,
        record_id: str,
        old_rank: int | None,
        new_rank: int | None,
        old_score: float | None,
        new_score: float | None,
    ) -> str:
        """Return a key of :data:`REASONS`; ranks are those among all candidates."""
        if record_id in self.marked:
            return "mark"
        there, elsewhere = (old_rank, "new record"), (new_rank, "record gone")
        for rank, name in (there, elsewhere):
            if rank is None:
                return name if self.known[verb] else "candidates unknown"
        assert old_rank is not None and new_rank is not None  # noqa: S101 - for the type checker
        if self.settings_differ:
            return "settings"
        if old_score is None or new_score is None:
            return "drawn" if self.drawn else "order moved"
        change = new_score - old_score
        wanted = self.sign if verb == "entered" else -self.sign
        if not self.sign and abs(change) > _TOLERANCE:
            return "score changed"
        if change * wanted > _TOLERANCE:
            return "score rose" if change > 0 else "score fell"
        old_size, new_size = self.sizes
        was, becomes = old_rank <= old_size, new_rank <= new_size
        by_rank_alone = (not was and becomes) if verb == "entered" else (was and not becomes)
        return "cut moved" if by_rank_alone else "quota"
