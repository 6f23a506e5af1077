"""From whatever file a team has to ``records.parquet``: read, check, name and count.

Streams through the source once, with one staged copy on the disk because a record's id
depends on all records. A record that cannot be used goes to ``rejected.jsonl`` with its
position (0 is the first record), field and reason: read = kept + rejected.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import atomic_file, sha256_file, sha256_json
from selectit_dagster.artefacts.hub import hub_commit
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    library_versions,
    make_or_current,
)
from selectit_dagster.data.input_files import Source, find_source
from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.experiment import DatasetSection
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.data.ingest_pass import Collector

RECORDS = "records.parquet"
REJECTED = "rejected.jsonl"
VERSION = 3


@dataclass(frozen=True)
class IngestRequest:
    """What is read, and how; ``profiled`` makes the profile, for who shows it."""

    dataset: DatasetSection
    profiled: bool = True


def source_identity(section: DatasetSection, source: Source) -> dict[str, Any]:
    """Return what the content of the source is known by: hashes, or a commit of the hub."""
    if source.format == "hub":
        return {"hub": section.path, "revision": dataset_commit(section)}
    if source.format == "datasets":
        path = Path(section.path)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        table = {str(p.relative_to(path)): sha256_file(p) for p in files}
        return {"sha256": sha256_json(table), "bytes": sum(p.stat().st_size for p in files)}
    return source.identity()


def dataset_commit(section: DatasetSection) -> str:
    """Return the commit of a hub dataset's revision; see :func:`hub_commit`."""
    hint = "check dataset.path and dataset.revision"
    return hub_commit(section.path, section.revision, "dataset", hint=hint)


def ingest_fingerprint(request: IngestRequest) -> Fingerprint:
    """Return what the raw dataset depends on: the source's content and the options."""
    section = request.dataset
    source = find_source(section)
    single = source.files[0].path if len(source.files) == 1 else Path()
    options = section.model_dump(exclude={"path", "more", "format", "revision"}, mode="json")
    return {
        "stage": "ingest",
        "version": VERSION,
        "format": source.written_format,
        "compression": source.compression,
        "suffix": "".join(single.suffixes[-2:]),
        "source": source_identity(section, source),
        **options,
    }


def ingest(request: IngestRequest, out: Path, progress: Progress | None = None) -> Manifest:
    """Read the dataset into ``out`` and return the manifest.

    Returns the stored artefact when it was made from the same content and options.

    Raises
    ------
    UserError
        When the source cannot be read, holds no record, was changed while it was read, or
        has more rejects than ``max_reject_share`` (after ``rejected.jsonl`` is written).
    PassingError, TransientError
        When the hub cannot be reached.
    """
    section = request.dataset
    source = find_source(section)
    fingerprint = ingest_fingerprint(request)

    def make() -> Content:
        try:
            found, details = _read(section, source, fingerprint, out, progress or Silent())
        except UserError as error:
            # half of the old content before half of the new one is wrong in many ways
            _check_unchanged(section, fingerprint, because=error)
            raise
        _check_unchanged(section, fingerprint)
        if request.profiled:
            from selectit_dagster.data.profile import profile_of

            details["profile"] = profile_of(out / RECORDS)
        return Content(
            files=[RECORDS, REJECTED],
            counts={"read": found.read, "kept": found.kept, "rejected": found.rejects.total},
            details=details,
            versions=library_versions("pyarrow", "orjson", "datasets", "zstandard"),
        )

    return make_or_current(out, kind="raw_dataset", fingerprint=fingerprint, make=make)


def _read(
    section: DatasetSection,
    source: Source,
    fingerprint: Fingerprint,
    out: Path,
    progress: Progress,
) -> tuple[Collector, dict[str, Any]]:
    """Stream the source into the two files; return the counts and the manifest's details."""
    from selectit_dagster.artefacts.duckdb_tables import Workspace
    from selectit_dagster.data.ingest_pass import Collector
    from selectit_dagster.data.readers import open_source

    with Workspace(out) as work:
        with atomic_file(out / REJECTED) as rejects:
            opened = open_source(section, source, fingerprint["source"].get("revision"))
            found = Collector(section, opened, work, rejects, progress)
            found.run()
        _check(section, found, out)
        details = found.finish(out / RECORDS)
    told = {
        "path": str(source.files[0].path) if len(source.files) == 1 else section.path,
        **{name: fingerprint[name] for name in ("format", "compression", "suffix")},
        **{name: getattr(section, name) for name in ("split", "config", "license")},
        **fingerprint["source"],
        **opened.details,
    }
    if found.by_file:
        counts = [found.by_file.get(entry["file"], Counter()) for entry in told["files"]]
        told["files"] = [
            {**entry, "read": count["read"], "rejected": count["rejected"]}
            for entry, count in zip(told["files"], counts, strict=True)
        ]
    return found, {
        "source": told,
        "format": fingerprint["format"],
        "suffix": fingerprint["suffix"],
        "sha256": fingerprint["source"].get("sha256"),
        **details,
        "notes": details["notes"] + source.notes(),
    }


def _check_unchanged(
    section: DatasetSection, fingerprint: Fingerprint, because: Exception | None = None
) -> None:
    """Refuse a source that is not what it was when the reading began."""
    try:
        found = source_identity(section, find_source(section))
    except (FileNotFoundError, UserError):
        found = {}
    if found != fingerprint["source"]:
        raise PassingError(
            f"{section.path} was changed while it was read",
            hint="run again when the file is complete",
        ) from because


def _check(section: DatasetSection, found: Collector, out: Path) -> None:
    """Hold the user's share of rejects."""
    if found.read == 0:
        raise UserError(f"{section.path} holds no records", hint="give a file with records")
    # what the data themselves exclude is no fault of theirs
    share = (found.rejects.total - found.rejects.excluded) / found.read
    if share <= section.max_reject_share and found.kept:
        return
    limit = (
        f"more than the {section.max_reject_share:.1%} that dataset.max_reject_share allows"
        if found.kept
        else "so there is nothing to work with"
    )
    lines = "; ".join(
        f"{kind['field']} {kind['reason']} ({kind['count']:,} records, first at "
        f"position {', '.join(map(str, kind['first_positions'][:3]))})"
        for kind in found.rejects.table()[:3]
    )
    raise UserError(
        f"{section.path}: {found.rejects.total:,} of {found.read:,} records "
        f"({share:.1%}) cannot be used, {limit}: {lines}",
        hint=f"see {out / REJECTED}; mend the data, correct dataset.layout or "
        "dataset.columns, or raise dataset.max_reject_share",
    )
