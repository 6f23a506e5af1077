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
from selectit_dagster.data.input_files import Source, find_source
from selectit_dagster.data.readers import describe
from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.experiment import DatasetSection
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.data.ingest_pass import Outcome

RECORDS = "records.parquet"
REJECTED = "rejected.jsonl"
VERSION = 3


@dataclass(frozen=True)
class IngestRequest:
    """What is read, and how."""

    dataset: DatasetSection


def source_identity(section: DatasetSection, source: Source) -> dict[str, Any]:
    """Return what the content of the source is known by: hashes, or a commit of the hub."""
    if source.format == "hub":
        from selectit_dagster.data.arrow_reader import resolve_hub_commit

        return {"hub": section.path, "revision": resolve_hub_commit(section.path, section.revision)}
    if source.format == "datasets":
        path = Path(section.path)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        table = {str(p.relative_to(path)): sha256_file(p) for p in files}
        return {"sha256": sha256_json(table), "bytes": sum(p.stat().st_size for p in files)}
    return source.identity()


def ingest_fingerprint(request: IngestRequest) -> Fingerprint:
    """Return what the raw dataset depends on: the source's content and the options."""
    section = request.dataset
    source = find_source(section)
    single = source.files[0].path if len(source.files) == 1 else Path()
    options = section.model_dump(exclude={"path", "more", "format", "revision"}, mode="json")
    return {
        "stage": "ingest",
        "version": VERSION,
        **describe(source),
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
    TransientError
        When the hub cannot be reached.
    """
    source = find_source(request.dataset)
    fingerprint = ingest_fingerprint(request)

    def make() -> Content:
        try:
            outcome = _read(request.dataset, source, fingerprint, out, progress or Silent())
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
    section: DatasetSection,
    source: Source,
    fingerprint: Fingerprint,
    out: Path,
    progress: Progress,
) -> Outcome:
    """Stream the source into the two files."""
    from selectit_dagster.artefacts.duckdb_tables import Workspace
    from selectit_dagster.data.ingest_pass import Collector
    from selectit_dagster.data.readers import open_reader

    with Workspace(out) as work:
        with atomic_file(out / REJECTED) as rejects:
            reader = open_reader(section, source, fingerprint["source"].get("revision"))
            collector = Collector(section, source, reader, work, rejects, progress)
            collector.run()
        return collector.finish(out / RECORDS, fingerprint)


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
    # what the data themselves exclude is no fault of theirs
    share = (outcome.rejected - outcome.excluded) / outcome.read
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
