"""Small artefacts for the storage tests."""

from __future__ import annotations

from pathlib import Path

from selectit_dagster.artefacts.manifest import MANIFEST, Manifest, read_manifest, write_manifest


def make(folder: Path, files: dict[str, bytes], **fingerprint: object) -> Manifest:
    """Write files and their manifest."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return write_manifest(
        folder, kind="test", fingerprint=dict(fingerprint), files=list(files), counts={"files": 1}
    )


def content(folder: Path) -> dict[str, bytes]:
    """Return every file that the folder's manifest names, and the manifest."""
    manifest = read_manifest(folder)
    assert manifest is not None
    return {name: (folder / name).read_bytes() for name in [*manifest.files, MANIFEST]}
