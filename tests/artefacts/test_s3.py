"""Against a real S3 server on loopback, with the faults of networks and people in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from artefact import content, make
from s3_server import BUCKET, READER, WRITER

from selectit_dagster.artefacts.manifest import read_manifest, verify
from selectit_dagster.artefacts.remote_files import Remote
from selectit_dagster.errors import ArtefactError, TransientError, UserError

FILES = {"a.txt": b"old a" * 1000, "sub/b.txt": b"old b" * 1000}
HERE = Path(__file__).parent


def folder_of(store) -> Path:
    return store.home.folder / "ranking"


@pytest.fixture
def machines(new_store, s3_place):
    """Two machines with one place in the bucket."""
    return new_store("here", Remote(s3_place)), new_store("there", Remote(s3_place))


def publish(store, files=FILES, **fingerprint) -> None:
    make(folder_of(store), files, **(fingerprint or {"alpha": 0.2}))
    store.publish(folder_of(store))


def fetch(store) -> None:
    store.fetch(folder_of(store), store.head(folder_of(store)))
    verify(folder_of(store))


def test_another_machine_gets_the_same_bytes(s3_server, s3_environment, machines):
    s3_environment(s3_server)
    here, there = machines
    here.check_place()
    there.check_place()
    publish(here)
    fetch(there)
    assert content(folder_of(there)) == content(folder_of(here))
    assert there.is_published(folder_of(there))
    assert here.address(folder_of(here)).startswith(f"s3://{BUCKET}/")


@pytest.mark.slow
def test_a_file_of_several_parts_travels_whole(s3_server, s3_environment, machines):
    s3_environment(s3_server)
    here, there = machines
    publish(here, {"model.safetensors": os.urandom(1 << 20) * 110})
    fetch(there)


def test_a_server_that_is_busy_is_asked_again_until_it_answers(proxy, machines):
    here, there = machines
    proxy.fault = lambda method, path, count: "503" if count % 4 == 0 else None
    here.check_place()
    publish(here)
    fetch(there)
    assert content(folder_of(there)) == content(folder_of(here))


def test_connections_that_break_in_the_middle_are_made_again(proxy, machines):
    here, there = machines
    broken: set[tuple[str, str]] = set()

    def once_each(method: str, path: str, _: int) -> str | None:
        if not path.endswith(".txt") or (method, path) in broken or "?" in path:
            return None
        broken.add((method, path))
        return "drop" if method == "PUT" else "cut"

    proxy.fault = once_each
    publish(here)
    fetch(there)
    assert {method for method, _ in broken} >= {"PUT", "GET"}
    assert content(folder_of(there)) == content(folder_of(here))


def test_a_byte_that_changes_on_the_way_in_is_refused_by_the_server(proxy, machines):
    here, there = machines
    flipped: list[str] = []

    def once(method: str, path: str, _: int) -> str | None:
        if method == "PUT" and path.endswith("a.txt") and len(flipped) < 1:
            flipped.append(path)
            return "flip"
        return None

    proxy.fault = once
    try:
        publish(here)
    except (UserError, TransientError):
        publish(here)
    fetch(there)
    assert flipped
    assert content(folder_of(there)) == content(folder_of(here))


def test_a_byte_that_changes_on_the_way_out_is_noticed_and_read_again(proxy, machines, caplog):
    here, there = machines
    publish(here)
    flipped: list[str] = []

    def once(method: str, path: str, _: int) -> str | None:
        if method == "GET" and path.endswith("a.txt") and not flipped:
            flipped.append(path)
            return "flip-answer"
        return None

    proxy.fault = once
    fetch(there)
    assert flipped
    assert "reading it again" in caplog.text
    assert content(folder_of(there)) == content(folder_of(here))


def test_a_slow_server_is_waited_for(proxy, machines):
    here, there = machines
    publish(here)
    proxy.fault = lambda method, path, count: "slow" if path.endswith("b.txt") else None
    fetch(there)


def test_a_server_that_stays_away_is_no_fault_of_the_user(s3_server, s3_environment, machines):
    s3_environment("http://127.0.0.1:9", attempts=2)
    with pytest.raises(TransientError, match="cannot be reached"):
        machines[0].check_place()


def test_a_server_that_stays_busy_leaves_the_artefact_before(proxy, machines, s3_environment):
    s3_environment(proxy.url, attempts=1)
    here, there = machines
    publish(here)
    before = content(folder_of(here))
    proxy.fault = lambda method, path, _: (
        "503" if method == "PUT" and path.endswith("/manifest.json") else None
    )
    with pytest.raises(TransientError):
        publish(here, {"a.txt": b"new"}, alpha=0.5)
    proxy.fault = None
    fetch(there)
    assert content(folder_of(there)) == before


@pytest.mark.parametrize(
    ("key", "place", "message"),
    [
        (("nobody", "x"), f"s3://{BUCKET}/p", "access is refused"),
        ((WRITER[0], "wrong-secret"), f"s3://{BUCKET}/p", "access is refused"),
        (READER, f"s3://{BUCKET}/p", "access is refused"),
        (WRITER, "s3://no-such-bucket/p", "there is no such bucket"),
    ],
)
def test_what_a_person_has_to_mend_is_told_at_once(
    s3_server, s3_environment, new_store, key, place, message
):
    s3_environment(s3_server, key)
    with pytest.raises(UserError, match=message) as caught:
        new_store("here", Remote(place)).check_place()
    assert place in str(caught.value)
    assert key[1] not in f"{caught.value}"


def test_without_credentials_the_variables_are_named(s3_server, s3_environment, monkeypatch):
    s3_environment(s3_server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="no usable credentials") as caught:
        Remote(f"s3://{BUCKET}/p").write("x", b"x")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_credentials_are_in_no_object_and_in_no_file_of_the_home(
    s3_server, s3_environment, machines, tmp_path
):
    s3_environment(s3_server)
    here, _ = machines
    publish(here)
    stored = [here.remote.read(key) for key in here.remote.sizes("experiments")]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(stored) == 4
    assert not any(word.encode() in one for one in stored + kept for word in WRITER)


@pytest.mark.parametrize("fault", ["missing", "truncated", "altered"])
def test_a_damaged_object_is_named_and_can_be_published_again(
    s3_server, s3_environment, machines, fault, tmp_path
):
    s3_environment(s3_server)
    here, there = machines
    publish(here)
    key = next(key for key in here.remote.sizes("experiments") if key.endswith("a.txt"))
    if fault == "missing":
        here.remote.remove(key)
    else:
        spoiled = FILES["a.txt"][:-1] + (b"" if fault == "truncated" else b"X")
        here.remote.write(key, spoiled)
    with pytest.raises(ArtefactError) as caught:
        fetch(there)
    assert here.remote.address(key) in caught.value.message
    assert read_manifest(folder_of(there)) is None
    # as the hint says: without its place in storage, a home that has it publishes it again
    here.remote.remove(here.stage(folder_of(here)))
    here.publish(folder_of(here))
    fetch(there)


_KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from artefact import make
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.remote_files import Remote
from selectit_dagster.artefacts.remote_copy import ArtefactStore

class Killed(Remote):
    def write(self, key, content):
        if key.endswith({before!r}):
            print("reached", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(key, content)

store = ArtefactStore(Killed({place!r}), Home(Path({home!r}), "small"))
folder = store.home.folder / "ranking"
make(folder, {{"a.txt": b"new a", "c.txt": b"new c"}}, alpha=0.5)
store.publish(folder)
"""


def test_a_process_killed_between_files_and_manifest_changes_nothing(
    s3_server, s3_environment, machines, s3_place
):
    s3_environment(s3_server)
    here, there = machines
    publish(here)
    before = content(folder_of(here))
    code = _KILLED.format(
        here=str(HERE), before="/manifest.json", place=s3_place, home=str(here.home.root)
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.stdout == "reached\n", answer.stderr
    assert answer.returncode == -signal.SIGKILL
    fetch(there)
    assert content(folder_of(there)) == before
    # the home has the new artefact; the next publication only switches
    here.publish(folder_of(here))
    fetch(there)
    assert (folder_of(there) / "a.txt").read_bytes() == b"new a"


def test_readers_never_see_a_mixture_while_others_write(
    s3_server, s3_environment, new_store, s3_place
):
    """Two writers publish artefacts whose files say which one they belong to; a reader looks."""
    from concurrent.futures import ThreadPoolExecutor

    s3_environment(s3_server)
    writers = [new_store(f"writer-{n}", Remote(s3_place)) for n in range(2)]
    reader = new_store("reader", Remote(s3_place))
    publish(writers[0], {"a": b"0-0", "b": b"0-0"}, turn="0-0")

    def write(number: int) -> None:
        for turn in range(6):
            mark = f"{number}-{turn}"
            publish(writers[number], {"a": mark.encode(), "b": mark.encode()}, turn=mark)

    seen = set()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(write, number) for number in range(2)]
        while not all(future.done() for future in futures):
            fetch(reader)
            files = content(folder_of(reader))
            assert files["a"] == files["b"]
            seen.add(files["a"])
        for future in futures:
            future.result()
    assert len(seen) > 1
