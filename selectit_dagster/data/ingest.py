"""From whatever file a team has to ``records.parquet``: read, check, name and count.

Streams through the source once, with one staged copy on the disk because a record's id
depends on all records. A record that cannot be used goes to ``rejected.jsonl`` with its
position (0 is the first record), field and reason: read = kept + rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import atomic_file, sha256_file, sha256_json
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    library_versions,
    make_or_current,
)
from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.experiment import DatasetSection, is_hub_name
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.data.ingest_pass import Outcome

RECORDS = "records.parquet"
REJECTED = "rejected.jsonl"
VERSION = 2


@dataclass(frozen=True)
class IngestRequest:
    """What is read, and how."""

    dataset: DatasetSection


def source_format(section: DatasetSection) -> tuple[str, str]:
    """Return (format, compression) of a dataset: forced by the options, else by content.

    Raises
    ------
    UserError
        When there is no such dataset or its content is of no supported format.
    """
    from selectit_dagster.data.byte_sources import detect_format, head_of

    path = Path(section.path)
    if section.format == "hub" or (not path.exists() and is_hub_name(section.path)):
        if section.format not in {"hub", "auto"}:
            raise UserError(
                f"the dataset {path} does not exist", hint="check dataset.path in the experiment"
            )
        return "hub", "none"
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        if section.format == "datasets" and not saved:
            raise UserError(
                f"{path} is no saved dataset: it has neither state.json nor dataset_dict.json",
                hint="format: hub loads a folder of data files",
            )
        return ("datasets" if saved else "hub"), "none"
    if section.format == "datasets":
        raise UserError(
            f"{path} is a file, not the folder of a saved dataset",
            hint="give the folder, or leave dataset.format out: a file's content shows its format",
        )
    compression, head = head_of(path)
    if section.format == "auto":
        return detect_format(path, compression, head), compression
    return section.format, compression


def source_identity(section: DatasetSection, kind: str) -> dict[str, Any]:
    """Return what the content of the source is known by: hashes, or a commit of the hub."""
    path = Path(section.path)
    if kind == "hub" and not path.is_dir():
        from selectit_dagster.data.arrow_reader import resolve_hub_commit

        return {"hub": section.path, "revision": resolve_hub_commit(section.path, section.revision)}
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        table = {str(p.relative_to(path)): sha256_file(p) for p in files}
        return {"sha256": sha256_json(table), "bytes": sum(p.stat().st_size for p in files)}
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def ingest_fingerprint(request: IngestRequest) -> Fingerprint:
    """Return what the raw dataset depends on: the source's content and the options."""
    section = request.dataset
    kind, compression = source_format(section)
    options = section.model_dump(exclude={"path", "format", "revision"})
    return {
        "stage": "ingest",
        "version": VERSION,
        "format": kind,
        "compression": compression,
        "suffix": "".join(Path(section.path).suffixes[-2:]),
        "source": source_identity(section, kind),
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
    TransientError
        When the hub cannot be reached.
    """
    fingerprint = ingest_fingerprint(request)

    def make() -> Content:
        try:
            outcome = _read(request.dataset, fingerprint, out, progress or Silent())
        except UserError as error:
            # half of the old content before half of the new one is wrong in many ways
            _check_unchanged(request.dataset, fingerprint, because=error)
            raise
        _check(request.dataset, fingerprint, outcome, out)
        return Content(
            files=[RECORDS, REJECTED],
            counts={"read": outcome.read, "kept": outcome.kept, "rejected": outcome.rejected},
            details=outcome.details,
            versions=library_versions("pyarrow", "orjson", "datasets", "zstandard"),
        )

    return make_or_current(out, kind="raw_dataset", fingerprint=fingerprint, make=make)


def _read(
    section: DatasetSection, fingerprint: Fingerprint, out: Path, progress: Progress
) -> Outcome:
    """Stream the source into the two files."""
    from selectit_dagster.artefacts.duckdb_tables import Workspace
    from selectit_dagster.data.ingest_pass import Collector
    from selectit_dagster.data.readers import open_reader

    with Workspace(out) as work:
        with atomic_file(out / REJECTED) as rejects:
            reader = open_reader(section, fingerprint)
            collector = Collector(section, reader, work, rejects, progress)
            collector.run()
        return collector.finish(out / RECORDS, fingerprint)


def _check_unchanged(
    section: DatasetSection, fingerprint: Fingerprint, because: Exception | None = None
) -> None:
    """Refuse a source that is not what it was when the reading began."""
    try:
        found = source_identity(section, fingerprint["format"])
    except FileNotFoundError:
        found = {}
    if found != fingerprint["source"]:
        raise PassingError(
            f"{section.path} was changed while it was read",
            hint="run again when the file is complete",
        ) from because


def _check(section: DatasetSection, fingerprint: Fingerprint, outcome: Outcome, out: Path) -> None:
    """Hold the balance, the source's identity and the user's share of rejects."""
    if outcome.read != outcome.kept + outcome.rejected:
        raise RuntimeError(
            f"records were lost: read {outcome.read}, kept {outcome.kept}, "
            f"rejected {outcome.rejected}"
        )
    _check_unchanged(section, fingerprint)
    if outcome.read == 0:
        raise UserError(f"{section.path} holds no records", hint="give a file with records")
    share = outcome.rejected / outcome.read
    if share > section.max_reject_share or outcome.kept == 0:
        limit = (
            f"more than the {section.max_reject_share:.1%} that dataset.max_reject_share allows"
            if outcome.kept
            else "so there is nothing to work with"
        )
        lines = "; ".join(
            f"{entry['field']} {entry['reason']} ({entry['count']:,} records, first at "
            f"position {', '.join(str(p) for p in entry['first_positions'][:3])})"
            for entry in outcome.details["rejects"][:3]
        )
        raise UserError(
            f"{section.path}: {outcome.rejected:,} of {outcome.read:,} records "
            f"({share:.1%}) cannot be used, {limit}: {lines}",
            hint=f"see {out / REJECTED}; mend the data, correct dataset.layout or "
            "dataset.columns, or raise dataset.max_reject_share",
        )
