"""Where every record went: the equations that hold at each stage and over all of them.

No record disappears. Each stage's counts satisfy its own equation, which is checked before
its manifest is written, and over the whole chain

    read = kept + rejected + duplicate + contaminated
    kept = ranked + too_long + failed

A stage that lost or doubled a record fails; it never writes an artefact that says otherwise.
"""

from __future__ import annotations

from pathlib import Path

Counts = dict[str, int]
_CHAIN, _RANKED = "all stages", "the ranking"
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
    _CHAIN: ("read", ("kept", "rejected", "duplicate", "contaminated")),
    _RANKED: ("kept", ("ranked", "too_long", "failed")),
}


class RecordsLostError(RuntimeError):
    """The counts of a stage do not add up: a fault of ours, never of the user's input."""


def check_counts(kind: str, counts: Counts, where: Path | str) -> None:
    """Hold a stage's equation; counts that lack one of its parts are not looked at.

    Raises
    ------
    RecordsLostError
        Naming the stage, both sides and every part.
    """
    whole, parts = EQUATIONS.get(kind, ("", ()))
    if not all(name in counts for name in (whole, *parts)):
        return
    found = {name: counts[name] for name in parts}
    if min(counts[whole], *found.values()) < 0:
        raise RecordsLostError(f"{where}: a count is negative: {whole} {counts[whole]}, {found}")
    if counts[whole] != sum(found.values()):
        shown = " + ".join(f"{name} {count:,}" for name, count in found.items())
        raise RecordsLostError(
            f"{where}: records were lost or doubled: {whole} {counts[whole]:,} is not {shown}"
        )


def account(raw: Counts, curated: Counts, ranking: Counts | None = None) -> Counts:
    """Return what became of every record, from the counts in the stages' manifests.

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
    found = {
        "read": raw["read"],
        "kept": curated["kept"],
        "rejected": raw["rejected"] + curated["rejected"],
        "duplicate": curated["duplicate"] + curated["near_duplicate"],
        "contaminated": curated["contaminated"],
    }
    if ranking is not None:
        found |= {name: ranking[name] for name in EQUATIONS[_RANKED][1]}
    for kind in (_CHAIN, _RANKED):
        check_counts(kind, found, kind)
    return found


def account_lines(found: Counts) -> list[str]:
    """Return the one or two equations of an account with their figures, for a person."""
    return [
        f"{whole} {found[whole]:,} = "
        + " + ".join(f"{name.replace('_', ' ')} {found[name]:,}" for name in parts)
        for whole, parts in (EQUATIONS[_CHAIN], EQUATIONS[_RANKED])
        if parts[0] in found
    ]
