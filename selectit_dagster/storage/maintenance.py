"""Looking after a storage place: is everything there, mend it, remove what nothing names.

Nothing is ever removed by a run. Garbage is what a person asks to be removed: artefacts that
were replaced long enough ago, and content that no manifest names. Content younger than a day
always stays, because a run that writes now names it last.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.artefacts.manifest import Fingerprint
from selectit_dagster.storage import layout
from selectit_dagster.storage.layout import Item
from selectit_dagster.storage.remote import Entry
from selectit_dagster.storage.store import ArtefactStore

# content that nothing names is left alone for so long: the run that wrote it may be at work
GRACE = dt.timedelta(days=1)
# files of a damaged artefact that are worth keeping, because rows are taken over one by one
_ROWS = "part-"


@dataclass(frozen=True)
class Artefact:
    """A manifest in storage: its key, its stage's path, what it was made from, its files."""

    key: str
    stage: str
    fingerprint: Fingerprint
    items: list[Item]

    @property
    def is_head(self) -> bool:
        """Whether this is the artefact that is valid now."""
        return self.key == layout.head_key(self.stage)


@dataclass(frozen=True)
class Problem:
    """One object that is not what a manifest says."""

    artefact: Artefact
    item: Item
    what: str

    @property
    def key(self) -> str:
        """The object's key."""
        return layout.object_key(self.artefact.stage, self.item)


@dataclass
class Inventory:
    """Everything that one experiment has in storage."""

    entries: dict[str, Entry]
    artefacts: list[Artefact]
    unfinished: dict[str, list[Item]] = field(default_factory=dict)

    @property
    def named(self) -> set[str]:
        """Keys of the objects that something names."""
        found = {layout.object_key(a.stage, item) for a in self.artefacts for item in a.items}
        for stage, items in self.unfinished.items():
            found |= {layout.object_key(stage, item) for item in items}
        return found


def inventory(store: ArtefactStore) -> Inventory:
    """Return what is there; content is listed before the manifests that name it are read."""
    prefix = store.stage(store.home.folder)
    entries = store.remote.entries(prefix)
    found = Inventory(entries, [])
    for key in entries:
        folder, _, name = key.rpartition("/")
        if f"/{layout.OBJECTS}/" in key:
            continue
        if name == layout.HEAD or folder.endswith(f"/{layout.MADE}"):
            stage = folder if name == layout.HEAD else folder.rpartition("/")[0]
            content = store.remote.read(key)
            if content is None:
                continue
            manifest = layout.parse_manifest(content, source=store.remote.address(key))
            items = layout.read_items(manifest.files, source=store.remote.address(key))
            found.artefacts.append(Artefact(key, stage, manifest.fingerprint, items))
        elif name == layout.UNFINISHED:
            content = store.remote.read(key)
            if content is not None:
                _, items = layout.parse_unfinished(content, source=store.remote.address(key))
                found.unfinished[folder] = items
    return found


def problems(store: ArtefactStore, there: Inventory, *, hashes: bool = False) -> Iterator[Problem]:
    """Yield every object that is missing or has another size, or with ``hashes`` other bytes.

    ``hashes`` reads everything.
    """
    for artefact in there.artefacts:
        for item in artefact.items:
            key = layout.object_key(artefact.stage, item)
            entry = there.entries.get(key)
            if entry is None:
                yield Problem(artefact, item, "is missing")
            elif entry.size != item.size:
                what = f"has {entry.size:,} bytes, its manifest says {item.size:,}"
                yield Problem(artefact, item, what)
            elif hashes and not _has_bytes(store, key, item):
                yield Problem(artefact, item, "was altered")


def _has_bytes(store: ArtefactStore, key: str, item: Item) -> bool:
    with tempfile.TemporaryDirectory(prefix="selectit-") as folder:
        path = Path(folder) / "object"
        store.remote.download(key, path)
        return sha256_file(path) == item.sha256


def repair(store: ArtefactStore, found: list[Problem]) -> tuple[list[str], list[str]]:
    """Mend what this home still has; let the rest be made again.

    An artefact that cannot be mended is taken out of storage, so that the next run makes it;
    its whole score parts stay, as work under way, so that only the others are scored again.

    Returns
    -------
    Addresses of the objects that were written again, and of the manifests that were taken out.
    """
    mended: list[str] = []
    lost: dict[str, list[Problem]] = {}
    for problem in found:
        if _from_home(store, problem):
            mended.append(store.remote.address(problem.key))
        else:
            lost.setdefault(problem.artefact.key, []).append(problem)
    for group in lost.values():
        _take_out(store, group)
    return mended, [store.remote.address(key) for key in lost]


def _folder(store: ArtefactStore, stage: str) -> Path:
    return store.home.folder / Path(stage).relative_to(store.stage(store.home.folder))


def _from_home(store: ArtefactStore, problem: Problem) -> bool:
    path = _folder(store, problem.artefact.stage) / problem.item.name
    if not path.is_file() or sha256_file(path) != problem.item.sha256:
        return False
    store.remote.upload(path, problem.key)
    return True


def _take_out(store: ArtefactStore, group: list[Problem]) -> None:
    artefact = group[0].artefact
    bad = {problem.item.sha256 for problem in group}
    rows = [i for i in artefact.items if i.name.startswith(_ROWS) and i.sha256 not in bad]
    if artefact.is_head and rows:
        folder = _folder(store, artefact.stage)
        store.note_unfinished(folder, artefact.fingerprint, rows)
    store.remote.remove(artefact.key)
    for problem in group:
        store.remote.remove(problem.key)


@dataclass(frozen=True)
class Garbage:
    """What may be removed: manifests of replaced artefacts first, then content."""

    manifests: dict[str, Entry]
    objects: dict[str, Entry]

    @property
    def bytes(self) -> int:
        """Size of all of it."""
        return sum(e.size for e in [*self.manifests.values(), *self.objects.values()])


def garbage(
    store: ArtefactStore, older_than: dt.timedelta, now: dt.datetime | None = None
) -> Garbage:
    """Return what nothing valid names: replaced artefacts of that age, and loose content."""
    now = now or dt.datetime.now(dt.UTC)
    there = inventory(store)

    def old(key: str, age: dt.timedelta) -> bool:
        modified = there.entries[key].modified
        return modified is not None and now - modified > age

    valid = {layout.made_key(a.stage, a.fingerprint) for a in there.artefacts if a.is_head}
    replaced = [
        a
        for a in there.artefacts
        if not a.is_head and a.key not in valid and old(a.key, max(older_than, GRACE))
    ]
    gone = {a.key for a in replaced}
    there.artefacts = [a for a in there.artefacts if a.key not in gone]
    named = there.named
    loose = [
        key
        for key in there.entries
        if f"/{layout.OBJECTS}/" in key and key not in named and old(key, GRACE)
    ]
    return Garbage(
        {key: there.entries[key] for key in sorted(gone)},
        {key: there.entries[key] for key in loose},
    )


def collect(store: ArtefactStore, found: Garbage) -> None:
    """Remove garbage; content that something names by now stays."""
    for key in found.manifests:
        store.remote.remove(key)
    named = inventory(store).named
    for key in found.objects:
        if key not in named:
            store.remote.remove(key)
