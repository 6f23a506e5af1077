"""Publishing and fetching: whole or not at all, whatever goes wrong in between."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from pathlib import Path

import pytest
from artefact import content, make

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.artefacts.manifest import MANIFEST, read_manifest, verify
from selectit_dagster.artefacts.remote_copy import MARKER
from selectit_dagster.artefacts.remote_files import Remote
from selectit_dagster.errors import ArtefactError, TransientError, UserError

OLD = {"a.txt": b"old a", "sub/b.txt": b"old b"}
NEW = {"a.txt": b"new a", "c.txt": b"new c"}


class Watched(Remote):
    """A place on the disk that notes what is written and read, and fails where it is told."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.written: list[str] = []
        self.read_back: list[str] = []
        self.broken: str | None = None

    def _fail(self, key: str) -> None:
        if self.broken is not None and self.broken in key:
            raise TransientError(f"{key}: gone")

    def write(self, key: str, content: bytes | Path) -> None:
        self._fail(key)
        self.written.append(key)
        super().write(key, content)

    def download(self, key: str, target: Path) -> None:
        self._fail(key)
        self.read_back.append(key)
        super().download(key, target)


@pytest.fixture
def watched(tmp_path):
    return Watched(f"file://{tmp_path}/place")


def folder_of(store) -> Path:
    return store.home.folder / "ranking"


def objects(store, folder: Path) -> list[Path]:
    root = Path(store.address(folder).removeprefix("file://"))
    return sorted(path for path in (root / "made").rglob("*") if path.is_file())


def test_another_home_gets_the_same_bytes(new_store):
    here, there = new_store("here"), new_store("there")
    make(folder_of(here), OLD, alpha=0.2)
    here.publish(folder_of(here))
    there.fetch(folder_of(there), there.head(folder_of(there)))
    assert content(folder_of(there)) == content(folder_of(here))
    verify(folder_of(there))
    assert there.was_fetched(folder_of(there))
    assert not here.was_fetched(folder_of(here))


def test_the_valid_manifest_is_written_last(new_store, watched):
    store = new_store("here", watched)
    make(folder_of(store), OLD, alpha=0.2)
    store.publish(folder_of(store))
    names = [key.split("/", 3)[3] for key in watched.written]
    assert sorted(name.split("/", 2)[2] for name in names[:2]) == ["a.txt", "sub/b.txt"]
    assert names[2].startswith("made/") and names[2].endswith("/manifest.json")
    assert names[3:] == ["manifest.json"]


def test_progress_is_told_in_megabytes_up_to_the_whole(new_store, tmp_path):
    class Told:
        def update(self, done: int, total: int, **_: float) -> None:
            seen.append((done, total))

    for place in (f"file://{tmp_path}/place", "memory://progress-test/x"):
        here, there = (
            new_store(f"{place[:4]}-here", Remote(place)),
            new_store(f"{place[:4]}-b", Remote(place)),
        )
        make(folder_of(here), {"a": b"x" * 3_000_000, "b": b"y" * 2_000_000}, alpha=0.2)
        seen: list[tuple[int, int]] = []
        here.publish(folder_of(here), Told())
        assert seen[-1] == (5, 5)
        assert seen == sorted(seen)
        seen.clear()
        there.fetch(folder_of(there), there.head(folder_of(there)), progress=Told())
        assert seen[-1] == (5, 5)


def test_publishing_again_writes_nothing(new_store, watched):
    store = new_store("here", watched)
    make(folder_of(store), OLD, alpha=0.2)
    store.publish(folder_of(store))
    watched.written.clear()
    store.publish(folder_of(store))
    assert watched.written == []


@pytest.mark.parametrize("step", [".txt", "/made/", "ranking/manifest.json"])
def test_a_publication_that_breaks_off_leaves_the_artefact_before_it_whole(
    new_store, watched, step
):
    here, there = new_store("here", watched), new_store("there")
    make(folder_of(here), OLD, alpha=0.2)
    here.publish(folder_of(here))
    before = content(folder_of(here))
    make(folder_of(here), NEW, alpha=0.5)
    watched.broken = step
    with pytest.raises(TransientError):
        here.publish(folder_of(here))
    there.fetch(folder_of(there), there.head(folder_of(there)))
    assert content(folder_of(there)) == before
    # and the next try brings the new one, also to a home that has the old one
    watched.broken = None
    here.publish(folder_of(here))
    there.fetch(folder_of(there), there.head(folder_of(there)))
    assert content(folder_of(there)) == content(folder_of(here))
    assert not (folder_of(there) / "sub" / "b.txt").exists()


def test_a_publication_goes_on_with_the_files_that_are_missing(new_store, watched):
    store = new_store("here", watched)
    make(folder_of(store), OLD, alpha=0.2)
    watched.broken = "manifest.json"
    with pytest.raises(TransientError):
        store.publish(folder_of(store))
    watched.broken = None
    watched.written.clear()
    store.publish(folder_of(store))
    assert [key.split("/")[3] for key in watched.written] == ["made", "manifest.json"]


def test_the_artefact_before_is_still_found_by_its_fingerprint(new_store):
    here, there = new_store("here"), new_store("there")
    for alpha, files in ((0.2, OLD), (0.5, NEW)):
        make(folder_of(here), files, alpha=alpha)
        here.publish(folder_of(here))
    there.fetch(folder_of(there), there.made(folder_of(there), {"alpha": 0.2}))
    assert (folder_of(there) / "a.txt").read_bytes() == b"old a"
    assert there.made(folder_of(there), {"alpha": 0.9}) is None


def test_of_two_writers_the_last_one_is_valid_whole_and_says_what_differs(new_store, caplog):
    one, two, reader = new_store("one"), new_store("two"), new_store("reader")
    for store, files, alpha in ((one, OLD, 0.2), (two, NEW, 0.5)):
        store.remember(folder_of(store))
        make(folder_of(store), files, alpha=alpha)
    one.publish(folder_of(one))
    with caplog.at_level(logging.WARNING):
        two.publish(folder_of(two))
    assert "alpha: stored 0.2, expected 0.5" in caplog.text
    reader.fetch(folder_of(reader), reader.head(folder_of(reader)))
    assert content(folder_of(reader)) == content(folder_of(two))


def test_two_writers_of_the_same_do_not_disturb_each_other(new_store, caplog):
    one, two, reader = new_store("one"), new_store("two"), new_store("reader")
    for store in (one, two):
        store.remember(folder_of(store))
        make(folder_of(store), OLD, alpha=0.2)
    with caplog.at_level(logging.WARNING):
        one.publish(folder_of(one))
        two.publish(folder_of(two))
    assert caplog.text == ""
    reader.fetch(folder_of(reader), reader.head(folder_of(reader)))
    verify(folder_of(reader))


def test_a_file_that_was_altered_at_home_is_not_published(new_store):
    store = new_store("here")
    make(folder_of(store), OLD, alpha=0.2)
    (folder_of(store) / "a.txt").write_bytes(b"other")
    with pytest.raises(ArtefactError, match=r"a\.txt is not what its manifest says"):
        store.publish(folder_of(store))
    assert store.head(folder_of(store)) is None


@pytest.mark.parametrize("fault", ["missing", "truncated", "altered"])
def test_a_damaged_object_is_named_and_nothing_of_it_is_seen(new_store, fault):
    here, there = new_store("here"), new_store("there")
    make(folder_of(there), NEW, alpha=0.5)
    there.publish(folder_of(there))
    before = content(folder_of(there))
    make(folder_of(here), OLD, alpha=0.2)
    here.publish(folder_of(here))
    victim = next(path for path in objects(here, folder_of(here)) if path.read_bytes() == b"old b")
    if fault == "missing":
        victim.unlink()
    else:
        victim.write_bytes(b"old" if fault == "truncated" else b"bad b")
    with pytest.raises(ArtefactError) as caught:
        there.fetch(folder_of(there), there.head(folder_of(there)))
    assert str(victim) in caught.value.message
    assert ("is missing" if fault == "missing" else "truncated or altered") in caught.value.message
    assert "publishes it again" in caught.value.hint
    assert content(folder_of(there)) == before


def test_what_came_damaged_over_the_line_is_read_again(new_store, watched, caplog):
    here, there = new_store("here"), new_store("there", watched)
    make(folder_of(here), OLD, alpha=0.2)
    here.publish(folder_of(here))
    whole, spoiled = watched.download, []

    def download(key: str, target: Path) -> None:
        whole(key, target)
        if not spoiled:
            spoiled.append(key)
            target.write_bytes(b"noise")

    watched.download = download
    with caplog.at_level(logging.WARNING):
        there.fetch(folder_of(there), there.head(folder_of(there)))
    assert "came damaged, reading it again" in caplog.text
    assert content(folder_of(there)) == content(folder_of(here))


def test_a_fetch_that_broke_off_goes_on_with_what_it_has(new_store, watched):
    here, there = new_store("here"), new_store("there", watched)
    make(folder_of(here), {f"f{i}": bytes([i]) * 10 for i in range(9)}, alpha=0.2)
    here.publish(folder_of(here))
    watched.broken = "/f8"
    with pytest.raises(TransientError):
        there.fetch(folder_of(there), there.head(folder_of(there)))
    assert read_manifest(folder_of(there)) is None
    watched.broken = None
    first = list(watched.read_back)
    watched.read_back.clear()
    there.fetch(folder_of(there), there.head(folder_of(there)))
    assert first
    assert len(first) + len(watched.read_back) == 9
    verify(folder_of(there))
    assert not (folder_of(there) / ".fetch").exists()


def test_two_names_of_one_content_are_both_there(new_store):
    here, there = new_store("here"), new_store("there")
    make(folder_of(here), {"a": b"same", "b": b"same", "sub/a": b"same"}, alpha=0.2)
    here.publish(folder_of(here))
    there.fetch(folder_of(there), there.head(folder_of(there)))
    verify(folder_of(there))


def test_a_place_that_keeps_content_by_its_hash_is_still_read(new_store, tmp_path):
    """What earlier versions wrote: objects/<sha256>/<file name>, made/<fingerprint>.json."""
    here, there = new_store("here"), new_store("there")
    make(folder_of(here), OLD, alpha=0.2)
    stage = Path(here.address(folder_of(here)).removeprefix("file://"))
    manifest = (folder_of(here) / MANIFEST).read_bytes()
    for name, entry in json.loads(manifest)["files"].items():
        target = stage / "objects" / entry["sha256"] / Path(name).name
        target.parent.mkdir(parents=True)
        target.write_bytes(OLD[name])
    (stage / "made").mkdir()
    (stage / "made" / f"{sha256_json({'alpha': 0.2})[:32]}.json").write_bytes(manifest)
    (stage / MANIFEST).write_bytes(manifest)
    (tmp_path / "place" / MARKER).write_text('{"format": 1}')
    there.check_place()
    assert there.made(folder_of(there), {"alpha": 0.2}) == there.head(folder_of(there))
    there.fetch(folder_of(there), there.head(folder_of(there)))
    assert content(folder_of(there)) == content(folder_of(here))


def test_an_empty_file_travels(new_store):
    here, there = new_store("here"), new_store("there")
    make(folder_of(here), {"rejected.jsonl": b""}, alpha=0.2)
    here.publish(folder_of(here))
    there.fetch(folder_of(there), there.head(folder_of(there)))
    assert (folder_of(there) / "rejected.jsonl").read_bytes() == b""


def published_with(store, files: dict[str, dict]) -> None:
    """Publish an artefact, and write another table of files into its stored manifest."""
    make(folder_of(store), OLD, alpha=0.2)
    store.publish(folder_of(store))
    head = Path(store.address(folder_of(store)).removeprefix("file://")) / MANIFEST
    value = json.loads(head.read_bytes())
    head.write_text(json.dumps({**value, "files": files}), encoding="utf-8")


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "manifest.json", ".lock", "..\\x", ""])
def test_a_stored_manifest_cannot_write_outside_of_its_folder(new_store, name):
    store = new_store("here")
    published_with(store, {name: {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}})
    with pytest.raises(ArtefactError, match="is no file of the artefact") as refusal:
        store.head(folder_of(store))
    assert "something else wrote to this place" in refusal.value.hint


@pytest.mark.parametrize("digest", ["", "../" * 21 + "x", "A" * 64, "0" * 63])
def test_a_stored_manifest_names_content_by_nothing_but_its_hash(new_store, digest):
    store = new_store("here")
    published_with(store, {"a.txt": {"bytes": 1, "sha256": digest}})
    with pytest.raises(ArtefactError, match=r"manifest\.json .*'a\.txt' is no file") as refusal:
        store.head(folder_of(store))
    assert "something else wrote to this place" in refusal.value.hint


class Forgetful(Remote):
    """A place that takes everything and keeps half of it, or nothing."""

    kept = 0.5

    def write(self, key: str, content: bytes | Path) -> None:
        if isinstance(content, bytes):
            super().write(key, content)
        elif self.kept:
            super().write(key, content.read_bytes()[: int(content.stat().st_size * self.kept)])


@pytest.mark.parametrize(("kept", "found"), [(0.5, "2 bytes"), (0, "no bytes")])
def test_a_place_that_does_not_keep_what_it_accepts_is_told(new_store, tmp_path, kept, found):
    place = Forgetful(f"file://{tmp_path}/place")
    place.kept = kept
    store = new_store("here", place)
    make(folder_of(store), {"a.txt": b"whole"}, alpha=0.2)
    with pytest.raises(ArtefactError, match=rf"a\.txt has {found} after 5 were") as refusal:
        store.publish(folder_of(store))
    assert "does not keep what it accepts" in refusal.value.hint
    assert store.head(folder_of(store)) is None


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "call", ["fsspec.implementations.local.LocalFileSystem.get_file", "os.fsync"]
)
def test_a_disk_that_is_full_while_fetching_is_told_with_the_file(new_store, monkeypatch, call):
    here, there = new_store("here"), new_store("there")
    make(folder_of(here), OLD, alpha=0.2)
    here.publish(folder_of(here))
    head = there.head(folder_of(there))
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(UserError, match=r"cannot write .*: No space left") as refusal:
            there.fetch(folder_of(there), head)
    assert str(folder_of(there) / ".fetch") in refusal.value.message
    assert refusal.value.hint == "make room, or choose another --home"
    assert not list((folder_of(there) / ".fetch").iterdir())
    there.fetch(folder_of(there), head)
    verify(folder_of(there))


def test_a_file_in_place_of_the_folder_for_fetching_is_told(new_store):
    here, there = new_store("here"), new_store("there")
    make(folder_of(here), OLD, alpha=0.2)
    here.publish(folder_of(here))
    folder_of(there).mkdir(parents=True)
    (folder_of(there) / ".fetch").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*\.fetch.*: File exists") as refusal:
        there.fetch(folder_of(there), there.head(folder_of(there)))
    assert "another --home" in refusal.value.hint


def test_something_else_in_place_of_a_manifest_is_refused(new_store):
    store = new_store("here")
    store.remote.write(f"{store.stage(folder_of(store))}/{MANIFEST}", b"<html>login</html>")
    with pytest.raises(ArtefactError, match="is not a manifest of this project"):
        store.head(folder_of(store))


def test_a_place_of_another_layout_is_refused(new_store):
    store = new_store("here")
    store.check_place()
    store.check_place()
    store.remote.write(MARKER, b'{"format": 99}')
    with pytest.raises(UserError, match="says format 99"):
        store.check_place()


def test_the_state_of_a_place_is_one_line(new_store, tmp_path):
    assert new_store("here").state() == (True, f"file://{tmp_path}/place (can be read and written)")
    (tmp_path / "file").write_bytes(b"")
    usable, line = new_store("here", Remote(f"file://{tmp_path}/file/place")).state()
    assert not usable
    assert "cannot be used" in line
    assert "\n" not in line


def test_a_copy_of_one_place_is_not_published_to_another(new_store, tmp_path):
    first, second = new_store("here"), new_store("here", Remote(f"file://{tmp_path}/second"))
    make(folder_of(first), OLD, alpha=0.2)
    first.publish(folder_of(first))
    assert first.is_published(folder_of(first))
    assert not second.is_published(folder_of(second))
    second.publish(folder_of(second))
    assert second.head(folder_of(second)) is not None


def test_no_address_with_secrets_and_no_path_of_the_home_is_stored(new_store, tmp_path):
    store = new_store("here")
    make(folder_of(store), OLD, alpha=0.2)
    store.publish(folder_of(store))
    stored = b"".join(p.read_bytes() for p in (tmp_path / "place").rglob("*") if p.is_file())
    assert str(tmp_path).encode() not in stored


class Plain(Remote):
    """A place whose file system shows files half written, like sftp."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.protocol = "plain"


def test_a_file_system_without_atomic_writes_gets_a_rename(tmp_path):
    place = Plain(f"file://{tmp_path}/plain")
    place.write("a/x", b"one")
    place.write("a/x", b"two")
    source = tmp_path / "source"
    source.write_bytes(b"three")
    place.write("a/y", source)
    assert place.read("a/x") == b"two"
    assert place.read("a/y") == b"three"
    assert sorted(place.sizes("a")) == ["a/x", "a/y"]


def test_an_unknown_scheme_and_a_missing_library_are_told_with_a_remedy(monkeypatch):
    with pytest.raises(UserError, match="nosuch"):
        Remote("nosuch://bucket").read("x")
    import fsspec.core

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match="Install s3fs") as caught:
        Remote("s3://bucket").read("x")
    assert "pip install s3fs" in caught.value.hint


def test_what_is_not_found_on_writing_is_the_bucket(tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def nowhere(*_: object, **__: object) -> None:
        raise FileNotFoundError("b/nobucket/o")  # all that gcsfs says

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", nowhere)
    monkeypatch.setattr(MemoryFileSystem, "put_file", nowhere)
    place, source = Remote("memory://nobucket/x"), tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(UserError, match="there is no such bucket"):
        place.write("x", b"x")
    with pytest.raises(UserError, match="there is no such bucket"):
        place.write("x", source)
    source.unlink()
    with pytest.raises(FileNotFoundError):
        place.write("x", source)


def test_a_place_in_memory_works_like_any_other(new_store):
    here, there = (new_store(n, Remote("memory://store-test/x")) for n in ("here", "there"))
    here.check_place()
    make(folder_of(here), OLD, alpha=0.2)
    here.publish(folder_of(here))
    there.fetch(folder_of(there), there.head(folder_of(there)))
    assert content(folder_of(there)) == content(folder_of(here))
