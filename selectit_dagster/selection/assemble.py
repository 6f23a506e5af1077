"""The work behind a selection: order, take the top, write, compare with what was there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, Workspace, move_into
from selectit_dagster.artefacts.files import sha256_json, write_text
from selectit_dagster.artefacts.manifest import (
    Content,
    Manifest,
    library_versions,
    read_manifest,
    require_manifest,
)
from selectit_dagster.errors import ArtefactError
from selectit_dagster.progress import Progress
from selectit_dagster.selection.arms.arm import ArmContext, Ordering
from selectit_dagster.selection.choose import Choice, choose
from selectit_dagster.selection.dataset_card import dataset_card
from selectit_dagster.selection.dataset_writer import Written, write_selected
from selectit_dagster.selection.difference import CANDIDATES_FILE
from selectit_dagster.selection.ranking import RANKING_FILE
from selectit_dagster.selection.response_passes import ResponsePasses
from selectit_dagster.selection.review import MARKS, named, read_review, review_digest, reviewed
from selectit_dagster.selection.subset import SelectionRequest, model_identity_of

if TYPE_CHECKING:
    import pyarrow as pa

CARD_FILE = "README.md"
_RESUME = ".resume-"


def assemble(request: SelectionRequest, count: int, out: Path, progress: Progress) -> Content:
    """Write the ``count`` records that the request's arm chooses into ``out``."""
    curated = require_manifest(request.records, made_by="curated_dataset")
    ranking = read_manifest(request.ranking) if request.ranking is not None else None
    old = read_manifest(out)
    with Workspace(out) as work:
        context = _context(request, curated, ranking, count, out, work, progress)
        ordering = request.rule.arrange(context)
        marks = read_review(request.review) if request.review is not None else {}
        if marks:
            ordering = reviewed(ordering, marks, context)
        # each candidate's place and score: for what changes next, and for the scores of all
        with ParquetStream(work.folder / CANDIDATES_FILE, schema=_order_schema()) as stream:
            for batch in ordering.places(context):
                stream.write(batch)
        if marks:
            count = min(count, stream.rows)
        order = work.table(stream.path)
        better = ordering.higher_is_better
        choice = choose(request, order, count, context, higher_is_better=better)
        source = source_of(curated, request.records)
        written = write_selected(context.records, choice, source, work, progress)
        counts = {
            "curated": curated.counts["kept"],
            "candidates": context.rows(context.candidates),
            "selected": choice.count,
        }
        details = _details(request, ordering, written, counts, choice, context)
        details["notes"] += curated.details.get("notes") or []
        if marks:
            details["review"] = {mark: named(marks, mark) for mark in MARKS}
        names = [*written.names, CARD_FILE]
        if request.kind != "full":
            names.append(CANDIDATES_FILE)
        card = dataset_card(request, counts, details, ranking, model_identity_of(request))
        write_text(work.folder / CARD_FILE, card)
        move_into(work.folder, out, names, list(old.files) if old else [])
    for cache in out.glob(f"{_RESUME}*"):
        shutil.rmtree(cache, ignore_errors=True)
    versions = library_versions("numpy", "pyarrow", "duckdb", "torch", "transformers")
    return Content(names, counts, details, versions, digest=written.content)


def source_of(curated: Manifest, folder: Path) -> dict[str, Any]:
    """Return what is known of the source's format, from the curated dataset's manifest.

    Raises
    ------
    ArtefactError
        When the manifest does not say it.
    """
    source = curated.details.get("source")
    if not isinstance(source, dict) or "format" not in source:
        raise ArtefactError(
            f"the manifest in {folder} does not say in which format the records came",
            hint="materialise curated_dataset again",
        )
    return source


def _context(
    request: SelectionRequest,
    curated: Manifest,
    ranking: Manifest | None,
    count: int,
    out: Path,
    work: Workspace,
    progress: Progress,
) -> ArmContext:
    records = request.records / "records.parquet"
    if request.ranking is None or request.kind == "full":
        candidates = (
            "(SELECT record_id, NULL::INTEGER AS rank, NULL::DOUBLE AS score "
            f"FROM {work.table(records)})"
        )
    else:
        candidates = (
            "(SELECT record_id, rank, score, sentence_score "
            f"FROM {work.table(request.ranking / RANKING_FILE)} WHERE rank IS NOT NULL)"
        )
    # what a killed run computed with a model is kept beside it, unless all arms share it
    basis = {"model": model_identity_of(request), "records": curated.digest}
    passes = request.passes or out / f"{_RESUME}{sha256_json(basis)[:16]}"
    return ArmContext(
        records=records,
        candidates=candidates,
        count=None if request.own_size else count,
        seed=request.seed,
        model=request.model,
        scores=request.scores,
        ranked_with=ranking.details if ranking else {},
        work=work,
        passes=ResponsePasses(passes, records, curated.digest, request.model, progress),
        rated=request.rated,
        ranking=request.ranking,
    )


def _order_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("record_id", pa.string()), ("rank", pa.int32()), ("score", pa.float64())])


def _details(
    request: SelectionRequest,
    ordering: Ordering,
    written: Written,
    counts: dict[str, int],
    choice: Choice,
    context: ArmContext,
) -> dict[str, Any]:
    average = f"SELECT avg(length(response)) FROM {context.texts()}"
    return {
        "arm": request.arm,
        "kind": request.kind,
        "describe": request.rule.describes,
        "parameters": _public(request.rule.settings()),
        "settings": _public(_settings(request, context)),
        "higher_is_better": ordering.higher_is_better,
        "seed": request.seed,
        "size": {request.size_rule: request.size},
        "share_of_curated": counts["selected"] / counts["curated"],
        "score_means": ordering.score_means,
        "cut": choice.cut,
        "response_characters": {
            "selected": written.characters / choice.count,
            "curated": context.work.row(average)[0],
        },
        "content_sha256": written.content,
        "data_file": written.names[0],
        "notes": [*ordering.notes, *choice.notes, *_without_score(request, counts)],
        **({"lacking": ordering.lacking} if ordering.lacking else {}),
        **({"quota": choice.quota} if choice.quota else {}),
        **({"tokens": choice.tokens} if choice.tokens is not None else {}),
    }


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """Return an arm's settings with files by their names: a manifest may be published."""
    return {k: Path(v).name if k == "file" else v for k, v in settings.items()}


def _without_score(request: SelectionRequest, counts: dict[str, int]) -> list[str]:
    """Return a note on the records that no score could be had of, and what the size counts."""
    missing = counts["curated"] - counts["candidates"]
    if not missing:
        return []
    note = f"{missing:,} of {counts['curated']:,} curated records have no score and were not to "
    note += "be chosen"
    if request.size_rule == "share":
        note += f"; the share {request.size:g} is of all {counts['curated']:,}"
        if counts["selected"] < int(request.size * counts["curated"]):
            note += f", so all {counts['selected']:,} that have one were taken"
    return [note]


def _settings(request: SelectionRequest, context: ArmContext) -> dict[str, Any]:
    """Return what decides the choice, one entry a setting, so that versions can be compared."""
    stated = dict(request.rule.settings())
    if request.review is not None:
        stated["review"] = review_digest(request.review)[:8]
    if request.by_scores:
        stated |= context.ranked_with.get("parameters", {})
        thetas = context.ranked_with.get("theta", {})
        stated |= {"models": ", ".join(sorted(thetas))}
        stated |= {f"theta of {name}": theta for name, theta in thetas.items()}
    return stated
