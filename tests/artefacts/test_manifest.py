"""Manifests: what was made from what, and whether it is whole."""

from __future__ import annotations

import pytest

from selectit_dagster.artefacts.manifest import (
    differences,
    is_current,
    read_manifest,
    require_manifest,
    verify,
    write_manifest,
)
from selectit_dagster.errors import ArtefactError


@pytest.fixture
def artefact(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"12345")
    write_manifest(tmp_path, kind="x", fingerprint={"alpha": 0.2}, files=["data.bin"])
    return tmp_path


def test_an_artefact_without_a_manifest_is_absent(tmp_path):
    assert read_manifest(tmp_path) is None
    assert not is_current(tmp_path, {})
    with pytest.raises(ArtefactError, match="materialise curated_dataset first"):
        require_manifest(tmp_path, made_by="curated_dataset")


def test_an_artefact_is_current_for_its_own_fingerprint_only(artefact):
    assert is_current(artefact, {"alpha": 0.2})
    assert not is_current(artefact, {"alpha": 0.3})
    assert not is_current(artefact, {"alpha": 0.2, "model": "x"})


def test_a_difference_names_field_stored_and_expected():
    found = differences({"alpha": 0.2, "gone": 1}, {"alpha": 0.3, "new": 2})
    assert [str(d) for d in found] == [
        "alpha: stored 0.2, expected 0.3",
        "gone: stored 1, expected '(absent)'",
        "new: stored '(absent)', expected 2",
    ]


@pytest.mark.parametrize("content", [b"1234", b"12346", None])
def test_a_truncated_altered_or_missing_file_is_named(artefact, content):
    path = artefact / "data.bin"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"data\.bin"):
        verify(artefact)


def test_a_whole_artefact_verifies(artefact):
    assert verify(artefact).kind == "x"


def test_the_digest_depends_on_content_alone(tmp_path):
    digests = set()
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "f").write_bytes(b"same")
        manifest = write_manifest(folder, kind="x", fingerprint={"n": name}, files=["f"])
        digests.add(manifest.digest)
    assert len(digests) == 1


def test_a_foreign_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"something": 1}', encoding="utf-8")
    with pytest.raises(ArtefactError, match="not a manifest"):
        read_manifest(tmp_path)
