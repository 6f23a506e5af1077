"""Two selections compared: the settings that differ, the cut that moved, what entered and left."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.manifest import Manifest, read_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.selection.dataset_writer import DATASET_FILE

CANDIDATES_FILE = "candidates.parquet"
_EXAMPLES = 20
_TOLERANCE = 1e-9
# settings that leave every record's own score and order as they are
_NO_SCORE = ("size", "review")
# a record of the tables o and n
_MOVED = (
    "record_id, 'rank' AS reason, o.rank AS old_rank, n.rank AS new_rank, "
    "o.score AS old_score, n.score AS new_score"
)


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
        Numbers by reason; docs/versions.md says what each means.
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
        """What decided the selection, with the seed of a draw."""
        seed = self.manifest.details.get("seed")
        return stated_settings(self.manifest) | ({} if seed is None else {"seed": seed})

    def tables(self, work: Workspace) -> tuple[str, str]:
        chosen = work.table(self.folder / DATASET_FILE)
        return chosen, work.table(self.folder / CANDIDATES_FILE) if self.has_candidates else chosen


def stated_settings(manifest: Manifest) -> dict[str, Any]:
    """Return what decided a selection, one entry a setting; the count counts under its rule."""
    stated = dict(manifest.details.get("settings") or {})
    for rule, size in (manifest.details.get("size") or {}).items():
        stated["size"] = f"{rule} {size:g}"
    return stated


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
    judge = _Judge(old, new, any(s["name"] not in _NO_SCORE for s in settings))
    counts: dict[str, dict[str, int]] = {}
    found: dict[str, list[Moved]] = {}
    for verb, present, absent, side in (
        ("entered", new_chosen, old_chosen, "n"),
        ("left", old_chosen, new_chosen, "o"),
    ):
        query = (
            f"SELECT {_MOVED} FROM "
            f"(SELECT record_id FROM {present} ANTI JOIN {absent} USING (record_id)) "
            f"LEFT JOIN {old_all} o USING (record_id) LEFT JOIN {new_all} n USING (record_id) "
            f"ORDER BY {side}.rank, record_id"
        )
        reasons: Counter[str] = Counter()
        found[verb] = []
        for moved in _moved(work, query):
            reason = judge.reason(verb, moved)
            reasons[reason] += 1
            if len(found[verb]) < examples:
                found[verb].append(replace(moved, reason=reason))
        counts[verb] = dict(reasons)
    farthest = (
        f"SELECT {_MOVED} {both} WHERE o.rank <> n.rank "
        f"ORDER BY abs(o.rank - n.rank) DESC, record_id LIMIT {examples}"
    )
    found["moved"] = list(_moved(work, farthest))
    cuts = [work.row(f"SELECT arg_max(score, rank) FROM {t}")[0] for t in (old_chosen, new_chosen)]
    return Difference(
        settings,
        kept,
        reordered,
        cuts,
        counts["entered"],
        counts["left"],
        found,
        str(new.manifest.details.get("score_means") or ""),
    )


def _moved(work: Workspace, query: str) -> Iterator[Moved]:
    for batch in work.batches(query):
        yield from (Moved(**row) for row in batch.to_pylist())


class _Judge:
    """Why a record entered or left."""

    def __init__(self, old: _Side, new: _Side, settings_differ: bool) -> None:
        self.settings_differ = settings_differ
        said = (side.manifest.details.get("review", {}) for side in (old, new))
        marks = [{(m, name) for m in ("keep", "drop") for name in r.get(m, ())} for r in said]
        self.marked = {name for _, name in marks[0] ^ marks[1]}
        self.known = {"entered": old.knows_candidates, "left": new.knows_candidates}
        self.sizes = [side.manifest.counts.get("selected", 0) for side in (old, new)]
        self.drawn = new.manifest.details.get("seed") is not None
        better = new.manifest.details.get("higher_is_better", True)
        self.sign = 0 if better is None else (1 if better else -1)

    def reason(self, verb: str, moved: Moved) -> str:
        """Return the reason; ranks are those among all candidates."""
        if moved.record_id in self.marked:
            return "mark"
        for rank, name in ((moved.old_rank, "new record"), (moved.new_rank, "record gone")):
            if rank is None:
                return name if self.known[verb] else "candidates unknown"
        if self.settings_differ:
            return "settings"
        if moved.old_score is None or moved.new_score is None:
            return "drawn" if self.drawn else "order moved"
        change = moved.new_score - moved.old_score
        wanted = self.sign if verb == "entered" else -self.sign
        if not self.sign and abs(change) > _TOLERANCE:
            return "score changed"
        if change * wanted > _TOLERANCE:
            return "score rose" if change > 0 else "score fell"
        ranks = (moved.old_rank, moved.new_rank)
        was, becomes = (cast(int, r) <= size for r, size in zip(ranks, self.sizes, strict=True))
        by_rank_alone = (not was and becomes) if verb == "entered" else (was and not becomes)
        return "cut moved" if by_rank_alone else "quota"
