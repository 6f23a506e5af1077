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
    whole, parts = EQUATIONS.get(kind, ("", ()))
    if all(name in counts for name in (whole, *parts)):
        _hold(str(where), whole, counts[whole], {name: counts[name] for name in parts})


def _hold(where: str, name: str, whole: int, parts: dict[str, int]) -> None:
    """Raise RecordsLostError unless the whole is the sum of the parts and none is negative."""
    if min(whole, *parts.values()) < 0:
        raise RecordsLostError(f"{where}: a count is negative: {name} {whole}, {parts}")
    if whole != sum(parts.values()):
        found = " + ".join(f"{part} {count:,}" for part, count in parts.items())
        raise RecordsLostError(
            f"{where}: records were lost or doubled: {name} {whole:,} is not {found}"
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
        found = vars(self)
        left_out = ("kept", "rejected", "duplicate", "contaminated")
        _hold("all stages", "read", self.read, {name: found[name] for name in left_out})
        if self.ranked is not None:
            parts = {name: found[name] or 0 for name in ("ranked", "too_long", "failed")}
            _hold("the ranking", "kept", self.kept, parts)

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
            **(
                {name: ranking[name] for name in ("ranked", "too_long", "failed")}
                if ranking
                else {}
            ),
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
