"""Where every record went: the equations that hold at each stage and over all of them.

No record disappears. Each stage's counts satisfy its own equation, which is checked before
its manifest is written, and over the whole chain

    read = kept + rejected + duplicate + contaminated
    kept = ranked + too_long + failed

A stage that lost or doubled a record fails; it never writes an artefact that says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# by an artefact's kind: the count of what came in, and the counts that it must be the sum of
EQUATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "raw_dataset": ("read", ("kept", "rejected")),
    "curated_dataset": (
        "raw",
        ("kept", "rejected", "duplicate", "near_duplicate", "contaminated"),
    ),
    "scores": ("records", ("ok", "too_long", "failed")),
    "ranking": ("kept", ("ranked", "too_long", "failed")),
    "checkpoint": ("records", ("trained", "skipped")),
}


class RecordsLostError(RuntimeError):
    """The counts of a stage do not add up: a fault of ours, never of the user's input."""


def check_counts(kind: str, counts: dict[str, int], where: Path | str) -> None:
    """Hold a stage's equation; counts that lack one of its parts are not looked at.

    Raises
    ------
    RecordsLostError
        Naming the stage, both sides and every part.
    """
    if kind not in EQUATIONS:
        return
    whole, parts = EQUATIONS[kind]
    if any(name not in counts for name in (whole, *parts)):
        return
    if any(counts[name] < 0 for name in (whole, *parts)):
        raise RecordsLostError(f"{where}: a count is negative: {counts}")
    if counts[whole] != sum(counts[name] for name in parts):
        found = " + ".join(f"{name} {counts[name]:,}" for name in parts)
        raise RecordsLostError(
            f"{where}: records were lost or doubled: {whole} {counts[whole]:,} is not {found}"
        )


@dataclass(frozen=True)
class Account:
    """What became of every record of one experiment, as far as its stages are made.

    ``ranked``, ``too_long`` and ``failed`` are None before the ranking is made.
    """

    read: int
    kept: int
    rejected: int
    duplicate: int
    contaminated: int
    ranked: int | None = None
    too_long: int | None = None
    failed: int | None = None

    def __post_init__(self) -> None:
        parts = (self.kept, self.rejected, self.duplicate, self.contaminated)
        if self.read != sum(parts):
            raise RecordsLostError(f"the stages' counts do not add up: {self}")
        if self.ranked is None:
            return
        if self.kept != self.ranked + (self.too_long or 0) + (self.failed or 0):
            raise RecordsLostError(f"the ranking's counts do not add up: {self}")

    @classmethod
    def of(
        cls,
        raw: dict[str, int],
        curated: dict[str, int],
        ranking: dict[str, int] | None = None,
    ) -> Account:
        """Return the account of the counts in the stages' manifests.

        Raises
        ------
        RecordsLostError
            When they do not add up: within a stage, or from one to the next.
        """
        if raw["kept"] != curated["raw"]:
            raise RecordsLostError(
                f"the raw dataset holds {raw['kept']:,} records, curation saw {curated['raw']:,}"
            )
        if ranking is not None and ranking["kept"] != curated["kept"]:
            raise RecordsLostError(
                f"curation kept {curated['kept']:,} records, the ranking saw {ranking['kept']:,}"
            )
        return cls(
            read=raw["read"],
            kept=curated["kept"],
            rejected=raw["rejected"] + curated["rejected"],
            duplicate=curated["duplicate"] + curated["near_duplicate"],
            contaminated=curated["contaminated"],
            ranked=ranking["ranked"] if ranking else None,
            too_long=ranking["too_long"] if ranking else None,
            failed=ranking["failed"] if ranking else None,
        )

    def lines(self) -> list[str]:
        """Return the one or two equations with their figures, for a person."""
        found = [
            f"read {self.read:,} = kept {self.kept:,} + rejected {self.rejected:,} + duplicate "
            f"{self.duplicate:,} + contaminated {self.contaminated:,}"
        ]
        if self.ranked is not None:
            found.append(
                f"kept {self.kept:,} = ranked {self.ranked:,} + too long {self.too_long:,} + "
                f"failed {self.failed:,}"
            )
        return found
