"""Files appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from selectit_dagster.artefacts.files import (
    atomic_file,
    folder_lock,
    read_json,
    sha256_json,
    staged_folder,
    write_json,
    write_text,
)
from selectit_dagster.errors import UserError


def test_a_file_is_absent_until_it_is_whole(tmp_path):
    target = tmp_path / "a" / "file.txt"
    with pytest.raises(RuntimeError), atomic_file(target) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert not target.exists()
    assert list(target.parent.iterdir()) == []


def test_an_interrupted_rewrite_leaves_the_old_content(tmp_path):
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_file(target) as handle:
        handle.write(b"new")
        raise RuntimeError
    assert target.read_text(encoding="utf-8") == "old"


def test_nan_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"score": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_message(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
        write_text(blocker / "below" / "x.txt", "text")


def test_a_damaged_json_file_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(path)


def test_a_staged_folder_replaces_the_old_one_only_when_it_is_complete(tmp_path):
    target = tmp_path / "artefact"
    with staged_folder(target) as stage:
        (stage / "a").write_text("1", encoding="utf-8")
    with pytest.raises(RuntimeError), staged_folder(target) as stage:
        (stage / "a").write_text("2", encoding="utf-8")
        raise RuntimeError
    assert (target / "a").read_text(encoding="utf-8") == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]


def test_key_order_does_not_change_a_hash():
    assert sha256_json({"a": 1, "b": [2, 3]}) == sha256_json({"b": [2, 3], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_a_second_process_is_refused_with_the_holders_name(tmp_path):
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from selectit_dagster.errors import UserError
        from selectit_dagster.artefacts.files import folder_lock
        try:
            with folder_lock(Path(sys.argv[1]), "second"):
                print("got it")
        except UserError as error:
            print(error)
        """
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with folder_lock(tmp_path, "the first run"):
        refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    freed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"the first run (process {os.getpid()})" in refused
    assert freed.strip() == "got it"
