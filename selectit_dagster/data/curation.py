"""From the raw to the curated dataset: flags, duplicates, decontamination.

Every record that does not get through is in ``dropped.jsonl`` with the step and the
reason. The steps, in this order, each looking only at what the ones before left:

1. flags that the options say to drop (empty, rating injection, ...): ``rejected``
2. exact duplicates: ``duplicate``
3. contamination with the experiment's benchmarks: ``contaminated``
4. near duplicates: ``near_duplicate``

raw = kept + rejected + duplicate + contaminated + near_duplicate, checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    library_versions,
    make_or_current,
    read_manifest,
    require_manifest,
)
from selectit_dagster.data.ingest import RECORDS
from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.experiment import CurationSection, ModelReference
from selectit_dagster.progress import Progress, Silent

DROPPED = "dropped.jsonl"
VERSION = 4
# what a manifest says of the source, passed on
_CARRIED = ("source", "format", "suffix", "layout", "notes")


@dataclass(frozen=True)
class CurationRequest:
    """What is curated, how, and against which questions (None: no benchmarks).

    ``tokenizer`` is the model in whose tokens the profile counts lengths; the curated records
    do not depend on it. ``profiled`` makes the profile, for who shows it.
    """

    raw: Path
    curation: CurationSection
    questions: Path | None = None
    tokenizer: ModelReference | None = None
    profiled: bool = True


def curation_fingerprint(request: CurationRequest) -> Fingerprint:
    """Return what the curated dataset depends on."""
    raw = require_manifest(request.raw, made_by="raw_dataset")
    questions = None
    if request.curation.decontamination and request.questions is not None:
        questions = _questions_identity(request.questions)
    return {
        "stage": "curate",
        "version": VERSION,
        "raw": raw.digest,
        "questions": questions,
        **request.curation.model_dump(),
    }


def _questions_identity(path: Path) -> str:
    """Return the digest of the questions' artefact, or the hash of a bare file."""
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None:
        return manifest.digest
    file = path / "questions.parquet" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{file} does not exist",
            hint="materialise benchmark_questions first, or switch curation.decontamination off",
        )
    return sha256_file(file)


def curate(request: CurationRequest, out: Path, progress: Progress | None = None) -> Manifest:
    """Curate the records of ``request.raw`` into ``out`` and return the manifest.

    Raises
    ------
    UserError
        When an upstream artefact is missing, or nothing is left.
    """
    if out.resolve() == request.raw.resolve():
        raise ValueError(f"{out}: the curated dataset cannot replace the raw one")
    fingerprint = curation_fingerprint(request)
    raw = require_manifest(request.raw, made_by="raw_dataset")

    def make() -> Content:
        from selectit_dagster.artefacts.duckdb_tables import Workspace
        from selectit_dagster.data.curation_passes import Curator
        from selectit_dagster.data.profile import profile_of

        with Workspace(out) as work:
            curator = Curator(request, raw.counts["kept"], work, progress or Silent())
            curator.decide()
            curator.write(out / RECORDS, out / DROPPED)
            counts = curator.counts()
            if not counts["kept"]:
                raise _nothing_left(counts, out / DROPPED)
            details = {name: raw.details.get(name) for name in _CARRIED}
            details |= {"read": raw.counts, **curator.details()}
            if request.profiled:
                count_tokens = _token_counter(request.tokenizer)
                details["profile"] = profile_of(out / RECORDS, count_tokens)
        return Content(
            files=[RECORDS, DROPPED],
            counts=counts,
            details=details,
            versions=library_versions("pyarrow", "datasketch", "numpy"),
        )

    return make_or_current(out, kind="curated_dataset", fingerprint=fingerprint, make=make)


def _nothing_left(counts: dict[str, int], dropped: Path) -> UserError:
    parts = ("rejected", "duplicate", "contaminated", "near_duplicate")
    shown = ", ".join(f"{name} {counts[name]:,}" for name in parts)
    return UserError(
        f"curation leaves no record of {counts['raw']:,}: {shown}",
        hint=f"see {dropped}, and switch off the step that drops too much",
    )


def _token_counter(reference: ModelReference | None) -> Callable[[str], int] | None:
    """Return a function that counts tokens; None where there is no tokenizer.

    A model that cannot be opened is no fault of the records: the profile then counts words,
    and the scoring stage says what is wrong with the model.
    """
    if reference is None:
        return None
    from selectit_dagster.inference.model_loading import load_tokenizer

    try:
        tokenizer = load_tokenizer(reference)
    except (UserError, TransientError):
        return None
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
