"""Promise 5: an artefact is either whole or absent; an altered one is found and named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_dagster.artefacts.manifest import is_current, require_manifest, verify, write_manifest
from selectit_dagster.data.curation import CurationRequest, curate
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.experiment import CurationSection, DatasetSection

_CONTENT = {"a.txt": b"some content", "b/c.bin": bytes(range(64)), "empty": b""}
_FINGERPRINT = {"stage": "x", "n": 1}


def _artefact(folder: Path) -> None:
    for name, content in _CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(
        folder, kind="x", fingerprint=_FINGERPRINT, files=list(_CONTENT), counts={"records": 3}
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_byte_of_an_artefact_is_found_and_named(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _artefact(folder)
        assert is_current(folder, _FINGERPRINT)
        names = [*(n for n, content in _CONTENT.items() if content), "manifest.json"]
        victim = folder / data.draw(st.sampled_from(names))
        content = bytearray(victim.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "grow", "remove"]))
        if how == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del content[at:]
        else:
            content += b"0"
        victim.write_bytes(content)
        if how == "remove":
            victim.unlink()
        if victim.name == "manifest.json" and _same_json(content):
            return  # a blank more or less between the values is no change
        with pytest.raises(UserError) as caught:
            require_manifest(folder, made_by="x")
        assert victim.name in str(caught.value)


def _same_json(content: bytes) -> bool:
    with tempfile.TemporaryDirectory() as name:
        _artefact(Path(name))
        before = json.loads((Path(name) / "manifest.json").read_bytes())
    try:
        after = json.loads(content)
    except (ValueError, RecursionError):
        return False
    changing = ("created_at", "seal", "seconds")
    same = {k: v for k, v in before.items() if k not in changing}
    return isinstance(after, dict) and same == {
        k: v for k, v in after.items() if k not in changing
    } and after.get("created_at", "")[:10] == before["created_at"][:10]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../outside", ".", "", "x\x00y"]
)
def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path, name):
    folder = tmp_path / "artefact"
    folder.mkdir()
    (tmp_path / "outside").write_text("x")
    _artefact(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    manifest["seal"] = ""
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="no file of the artefact"):
        verify(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000, b'{"kind": 1}', b'{"a": 1e999}'],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        verify(tmp_path)


def test_nothing_is_built_on_an_altered_artefact(tmp_path):
    rows = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(40)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DatasetSection(path=str(data))
    ingest(IngestRequest(section), tmp_path / "raw")
    records = tmp_path / "raw" / "records.parquet"
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 1
    records.write_bytes(content)
    request = CurationRequest(tmp_path / "raw", CurationSection())
    with pytest.raises(ArtefactError, match=r"records\.parquet is not what its manifest says"):
        curate(request, tmp_path / "curated")
    assert not (tmp_path / "curated" / "manifest.json").exists()
    # nor is it taken for current by the stage that made it
    with pytest.raises(ArtefactError, match="truncated or altered"):
        ingest(IngestRequest(section), tmp_path / "raw")


def test_without_its_manifest_an_artefact_is_absent(tmp_path):
    _artefact(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert not is_current(tmp_path, _FINGERPRINT)
    with pytest.raises(ArtefactError, match="holds no complete artefact"):
        require_manifest(tmp_path, made_by="x")
