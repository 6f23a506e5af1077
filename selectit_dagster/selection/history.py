"""Versions of one arm's selection: kept when another takes their place, listed, gone back to.

``history/<arm>/versions.json`` lists them and says which one is current; ``v1/``, ``v2/``, ...
hold their files (hard links) with the manifest that they were written with. The current one
lies in ``selected/<arm>`` too, where whatever is downstream reads it. A version that a person
chose stands in for the selection that was asked for then, until something else is asked for.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import (
    folder_lock,
    read_json,
    sha256_json,
    staged_folder,
    write_json,
)
from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    Fingerprint,
    read_manifest,
    require_manifest,
    write_manifest,
)
from selectit_dagster.errors import UserError
from selectit_dagster.selection.difference import compare_selections, stated_settings

VERSIONS = "versions.json"
TAKEN_OVER = "taken over from before there were versions"


@dataclass(frozen=True)
class Version:
    """One version of a selection.

    Attributes
    ----------
    number:
        1 is the first.
    selected, digest, records, settings:
        Number of records, digest of their texts in order, digest of the curated dataset, and
        what decided the choice.
    made_at, asked_by, dagster_run, mlflow_run:
        When it was made, who or what asked for it, and where that can be looked up.
    change:
        Difference from the version before; see :meth:`Difference.summary`.
    what_if:
        The what-if run that it was promoted from.
    kept:
        Whether its files are still there.
    """

    number: int
    selected: int
    digest: str
    records: str
    made_at: str
    settings: dict[str, Any] = field(default_factory=dict)
    asked_by: str = ""
    dagster_run: str = ""
    mlflow_run: str = ""
    change: dict[str, Any] | None = None
    what_if: str = ""
    kept: bool = True

    @property
    def name(self) -> str:
        """Name of its folder, as a person names it."""
        return f"v{self.number}"


@dataclass(frozen=True)
class State:
    """What ``versions.json`` holds.

    Attributes
    ----------
    current:
        Number of the version that is in use; 0 when there is none.
    since, why:
        Since when and why.
    instead_of:
        Hash of the fingerprint that a chosen version stands in for; empty when none does.
    confirmed:
        When and by whom a selection came out as the current version, the last time.
    """

    current: int = 0
    since: str = ""
    why: str = ""
    instead_of: str = ""
    confirmed: dict[str, str] = field(default_factory=dict)
    versions: tuple[Version, ...] = ()


@dataclass(frozen=True)
class History:
    """The versions of one arm's selection.

    Parameters
    ----------
    folder:
        Where they are kept.
    selected:
        Where the current one lies for those who read it.
    keep:
        How many to keep, the current one and those in use apart.
    in_use:
        Returns the digests that checkpoints were made from; such versions are not deleted.
    """

    folder: Path
    selected: Path
    keep: int = 20
    in_use: Callable[[], set[str]] = set

    @property
    def state(self) -> State:
        """What is known of the versions."""
        path = self.folder / VERSIONS
        if not path.exists():
            return State()
        value = read_json(path)
        return State(**{**value, "versions": tuple(Version(**row) for row in value["versions"])})

    @property
    def current(self) -> Version | None:
        """The version in use."""
        state = self.state
        return next((v for v in state.versions if v.number == state.current), None)

    def before_current(self) -> Version | None:
        """Return the version before the current one, None where its files are gone."""
        state = self.state
        older = [v for v in state.versions if v.kept and v.number < state.current]
        return older[-1] if older else None

    def place(self, version: Version) -> Path:
        """Return the folder of a version."""
        return self.folder / version.name

    def folders(self) -> list[Path]:
        """Return the folders that storage keeps beside the selection: the list, the newest."""
        current = self.current
        return [self.folder, *([self.place(current)] if current is not None else [])]

    def find(self, name: str) -> Version:
        """Return the version that a person names: ``3``, ``v3`` or ``current``.

        Raises
        ------
        UserError
            When there is none, or its files are gone.
        """
        state = self.state
        wanted = str(state.current) if name == "current" else name.removeprefix("v")
        found = next((v for v in state.versions if str(v.number) == wanted), None)
        kept = [v.name for v in state.versions if v.kept]
        if found is None or not found.kept:
            why = "is no version" if found is None else "is no longer kept as a version"
            raise UserError(
                f"{name} {why} of the selection {self.selected.name}",
                hint=f"the versions are {', '.join(kept)}" if kept else "make a selection first",
            )
        return found

    # --- a selection was made ---------------------------------------------------------------

    def adopt(self) -> None:
        """Take a selection over that was made before there were versions, as the first one."""
        if read_manifest(self.selected) is not None and not self.state.versions:
            with folder_lock(self.folder, "keeping a version"):
                self._add(self.selected, asked_by=TAKEN_OVER)

    def record(self) -> bool:
        """Keep what lies in ``selected`` as a version; False where it is the current one."""
        manifest = require_manifest(self.selected, made_by="the selection")
        with folder_lock(self.folder, "keeping a version"):
            current = self.current
            if current is not None and current.digest == manifest.digest:
                self._write(replace(self.state, confirmed={"at": _now(), "by": ""}))
                return False
            self._add(self.selected)
            return True

    def note(self, *, asked_by: str, dagster_run: str = "", mlflow_run: str = "") -> None:
        """Say of the last selection who or what asked for it, and where that is recorded."""
        state, current = self.state, self.current
        if current is None:
            return
        if state.confirmed:  # it came out the same
            confirmed = {"at": _now(), "by": asked_by, "dagster_run": dagster_run}
            self._write(replace(state, confirmed=confirmed))
            return
        told = replace(current, asked_by=asked_by, dagster_run=dagster_run, mlflow_run=mlflow_run)
        self._write(replace(state, versions=_put(state.versions, told)))

    def _add(
        self,
        source: Path,
        why: str = "selected",
        *,
        instead_of: str = "",
        asked_by: str = "",
        what_if: str = "",
    ) -> Version:
        """Keep a selection as the next version, the current one from now on."""
        manifest, state = require_manifest(source, made_by="the selection"), self.state
        before = self.current
        change = None
        if before is not None and before.kept:
            change = compare_selections(self.place(before), source).summary()
        version = Version(
            number=max((v.number for v in state.versions), default=0) + 1,
            selected=manifest.counts["selected"],
            digest=manifest.digest,
            records=str(manifest.fingerprint.get("records", "")),
            made_at=manifest.created_at,
            settings=stated_settings(manifest),
            change=change,
            asked_by=asked_by,
            what_if=what_if,
        )
        _link(source, self.place(version))
        versions = (*state.versions, version)
        self._write(State(version.number, _now(), why, instead_of, versions=versions))
        self.prune(self.removable())
        return version

    # --- a person chooses a version ---------------------------------------------------------

    def asked(self, fingerprint: Fingerprint) -> Fingerprint:
        """Return the fingerprint of what stands in for a selection, its own when nothing does."""
        state = self.state
        if not state.instead_of or state.instead_of != sha256_json(fingerprint):
            return fingerprint
        stands_in = read_manifest(self.selected)
        return stands_in.fingerprint if stands_in is not None else fingerprint

    def use(self, name: str, why: str) -> Version:
        """Put a version into use again; whatever reads the selection is out of date then.

        It stays until something else is asked for than what it takes the place of: other data,
        scores or settings.

        Raises
        ------
        UserError
            When there is no such version.
        """
        self.adopt()
        version = self.find(name)
        with folder_lock(self.folder, "going back to a version"):
            instead_of = self._asked_for()
            _link(self.place(version), self.selected)
            state = replace(self.state, current=version.number, since=_now(), why=why)
            self._write(replace(state, instead_of=instead_of, confirmed={}))
        return version

    def promote(self, source: Path, what_if: str, why: str, *, asked_by: str) -> Version:
        """Make the selection of a what-if run the next version, and use it."""
        self.adopt()
        with folder_lock(self.folder, "promoting a what-if"):
            pinned = self._asked_for()
            version = self._add(source, why, instead_of=pinned, asked_by=asked_by, what_if=what_if)
            _link(self.place(version), self.selected)
        return version

    def _asked_for(self) -> str:
        """Return the hash of the fingerprint that the current selection was asked for with."""
        manifest = read_manifest(self.selected)
        return self.state.instead_of or (sha256_json(manifest.fingerprint) if manifest else "")

    # --- what may go ------------------------------------------------------------------------

    def removable(self, keep: int | None = None) -> list[Version]:
        """Return the versions beyond what is kept: not current, and nothing was tuned on them."""
        state, used = self.state, self.in_use()
        kept = [v for v in state.versions if v.kept]
        beyond = kept[: max(0, len(kept) - (self.keep if keep is None else keep))]
        return [v for v in beyond if v.number != state.current and v.digest not in used]

    def prune(self, versions: list[Version]) -> int:
        """Delete the files of versions, which stay in the list, and return the bytes freed."""
        freed = sum(self.bytes_of(version) for version in versions)
        for version in versions:
            state = self.state
            gone = replace(version, kept=False, change=_brief(version.change))
            self._write(replace(state, versions=_put(state.versions, gone)))
            shutil.rmtree(self.place(version), ignore_errors=True)
        return freed

    def bytes_of(self, version: Version) -> int:
        """Return what deleting a version frees: files that lie nowhere else."""
        return sum(p.stat().st_size for p in _files(self.place(version)) if p.stat().st_nlink == 1)

    # --- showing ----------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return the versions as table rows, newest first."""
        state = self.state
        return [
            {
                "version": f"{v.name}{' (current)' if v.number == state.current else ''}",
                "made": v.made_at[:16].replace("T", " "),
                "records": v.selected,
                "entered": v.change["entered"] if v.change else None,
                "left": v.change["left"] if v.change else None,
                "asked by": v.asked_by,
                "data": v.records[:8],
                "Dagster run": v.dagster_run[:8],
                "change": v.change["text"] if v.change else "the first version",
                "files": "kept" if v.kept else "pruned",
            }
            for v in reversed(state.versions)
        ]

    def said(self) -> str:
        """Return one sentence on the current version and how it came to be the current one."""
        state, current = self.state, self.current
        if current is None:
            return "There is no version yet."
        if state.instead_of:
            return f"{current.name} is in use since {state.since[:16]}: {state.why}."
        if state.confirmed:
            by = state.confirmed.get("by")
            who = f" ({by})" if by else ""
            when = state.confirmed["at"][:16].replace("T", " ")
            return f"Selected again {when}{who}: nothing changed, still {current.name}."
        return f"{current.name}: {current.change['text'] if current.change else 'the first one.'}"

    def _write(self, state: State) -> None:
        write_json(self.folder / VERSIONS, asdict(state))
        write_manifest(
            self.folder,
            kind="selection_history",
            fingerprint={"arm": self.selected.name, "versions": len(state.versions)},
            files=[VERSIONS],
        )


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _brief(change: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if change is None else {**change, "examples": {}}


def _put(versions: tuple[Version, ...], version: Version) -> tuple[Version, ...]:
    return tuple(version if v.number == version.number else v for v in versions)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _link(source: Path, target: Path) -> None:
    """Make a folder of hard links to an artefact's files, the manifest among them."""
    manifest = require_manifest(source, made_by="the selection")
    with staged_folder(target) as stage:
        for name in (*manifest.files, MANIFEST):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source / name, stage / name)
            except OSError:  # another file system, or one without links
                shutil.copy2(source / name, stage / name)
