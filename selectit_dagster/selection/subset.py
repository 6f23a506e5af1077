"""Choose a subset with one selection arm and write it as a dataset.

All arms that compete choose from the same candidates, the records that could be ranked, and
choose equally many of them; only ``full`` takes every curated record. The subset of an arm
depends on the records and their ids, never on the order of a file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.artefacts.manifest import (
    Fingerprint,
    Manifest,
    is_current,
    library_versions,
    require_manifest,
    write_manifest,
)
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.selection.arms.arm import Arm, arm_of, arms
from selectit_dagster.selection.ranking import RANKING_FILE
from selectit_dagster.selection.review import review_digest

if TYPE_CHECKING:
    from selectit_dagster.experiment import ModelReference

# what the stored files mean; a change makes stored selections out of date
_FORMAT = 1
# kinds whose scores are in the ranking itself
_RANKED_SCORES = ("selectit", "sentence-level", "diverse")


@dataclass(frozen=True)
class SelectionRequest:
    """One arm's selection.

    Attributes
    ----------
    arm:
        Name of the subset (``random-2``).
    kind:
        The selection rule, a kind of :func:`selectit_dagster.selection.arms.arm.arms`.
    parameters:
        The arm's parameters beside its kind, as in the experiment file.
    seed:
        The draw of the random arm; None for the others.
    records:
        Folder of the curated dataset.
    ranking:
        Folder of the ranking. Where it is given, every arm chooses among its ranked
        records; an arm on stored scores cannot do without.
    scores:
        (model name, score folder), for ``token-level``.
    size_rule, size:
        ``share`` of the curated records, ``count``, ``tokens``, or ``threshold``: the lowest
        SelectIT score, or this arm's own where ``parameters`` has it.
    model:
        The model of an arm that runs one; by its name the model whose scores an arm of a
        single model takes (default: the largest θ).
    tokenizer:
        Whose tokens a token budget counts.
    passes:
        Where passes of models over the records are kept for all arms; default: in the folder
        of the selection, until it is made.
    rated:
        Folder of the rated texts, where those are not the records.
    review:
        Marks of people, which count in this choice.
    provenance:
        What the card says of the experiment: ``experiment``, ``source``, ``license``,
        ``models``, ``rating``.
    """

    arm: str
    kind: str
    seed: int | None
    records: Path
    ranking: Path | None
    scores: tuple[tuple[str, Path], ...]
    size_rule: str
    size: float
    model: ModelReference | None
    provenance: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    tokenizer: ModelReference | None = None
    passes: Path | None = None
    rated: Path | None = None
    review: Path | None = None

    @cached_property
    def rule(self) -> Arm:
        """The arm with its parameters."""
        return arm_of({"kind": self.kind, **self.parameters})

    @property
    def by_scores(self) -> bool:
        """Whether the arm's order comes from stored scores."""
        return "scores" in self.rule.needed

    @property
    def own_size(self) -> bool:
        """Whether how many are chosen is known only when the arm has its order."""
        return self.size_rule == "tokens" or self.rule.threshold is not None


def selection_count(
    rule: str, size: float, *, curated: int, candidates: int, reaching: int | None = None
) -> int:
    """Return how many records every competing arm selects.

    Parameters
    ----------
    rule:
        ``share``: ``size`` times ``curated``, rounded down (in decimal arithmetic, so that
        0.29 of 100 is 29), at least 1 and at most ``candidates``. ``count``: ``size``.
        ``threshold``: ``reaching``.
    curated:
        Number of curated records.
    candidates:
        Number of records that can be chosen: the ranked ones, where there is a ranking.
    reaching:
        Number of records whose SelectIT score is at least the threshold.

    Raises
    ------
    UserError
        When nothing can be chosen, or more than there is.
    """
    if candidates < 1:
        raise UserError(
            "there is no record to choose from: none could be ranked",
            hint="see the ranking's counts of too_long and failed records",
        )
    if rule == "share":
        if not 0 < size <= 1:
            raise UserError(
                f"the share must be above 0 and at most 1, found {size}",
                hint="give the share as a fraction: 0.2 is a fifth",
            )
        return min(candidates, max(1, int(Decimal(repr(float(size))) * curated)))
    if rule == "count":
        if size != int(size) or not 1 <= size <= candidates:
            raise UserError(
                f"{size:g} records are to be chosen from {candidates:,}",
                hint=f"give a whole number from 1 to {candidates}",
            )
        return int(size)
    if rule != "threshold":
        raise UserError(f"unknown size rule {rule!r}", hint="one of share, count, threshold")
    if reaching is None:
        raise UserError(
            "a threshold on the score needs a ranking",
            hint="give selection.share or selection.count where there are no scores",
        )
    if reaching < 1:
        raise UserError(
            f"no record reaches the threshold {size:g}",
            hint="see the score summary of the ranking for the scores that there are",
        )
    return min(reaching, candidates)


def resolved_count(request: SelectionRequest) -> int:
    """Return the number of records that the request selects; reads counts only.

    The most that there can be where :attr:`SelectionRequest.own_size` says so.
    """
    records = require_manifest(request.records, made_by="curated_dataset")
    curated = records.counts["kept"]
    if request.kind == "full":
        return curated
    candidates, reaching = curated, None
    if request.ranking is not None:
        candidates = require_manifest(request.ranking, made_by="ranking").counts["ranked"]
    if request.own_size:
        return candidates
    if request.ranking is not None and request.size_rule == "threshold":
        reaching = _reaching(request.ranking / RANKING_FILE, request.size)
    return selection_count(
        request.size_rule,
        request.size,
        curated=curated,
        candidates=candidates,
        reaching=reaching,
    )


def _reaching(ranking: Path, threshold: float) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    count = 0
    try:
        for batch in pq.ParquetFile(ranking).iter_batches(columns=["score"]):
            reached = pc.sum(pc.greater_equal(batch.column("score"), threshold)).as_py()
            count += reached or 0
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ArtefactError(f"{ranking} cannot be read: {error}", hint="rank again") from error
    return count


def selection_fingerprint(request: SelectionRequest) -> Fingerprint:
    """Return what the selection's content depends on.

    An arm whose order does not come from the scores stays current when only the ranking's
    order changes.
    """
    records = require_manifest(request.records, made_by="curated_dataset")
    rule = request.rule
    fingerprint: Fingerprint = {
        "format": _FORMAT,
        "arm": request.arm,
        "kind": request.kind,
        "records": records.digest,
        "size": {request.size_rule: request.size},
        "provenance": card_provenance(request),
    }
    if not request.own_size:
        fingerprint["count"] = resolved_count(request)
    if len(rule.draws) > 1 or rule.draws[0] is not None:
        fingerprint["seed"] = request.seed
    if identity := rule.identity():
        fingerprint["parameters"] = identity
    if request.review is not None:
        fingerprint["review"] = review_digest(request.review)
    if request.ranking is not None and request.kind != "full":
        ranking = _ranking_of(request.ranking, request.records, records)
        if request.by_scores:
            fingerprint["ranking"] = ranking.digest
            fingerprint["thetas"] = ranking.details["theta"]
            fingerprint["model_name"] = getattr(request.model, "name", None)
            if request.kind not in _RANKED_SCORES or identity:
                fingerprint["scores"] = ranking.fingerprint["scores"]
        else:
            fingerprint["not_ranked"] = ranking.details["excluded_sha256"]
    for name, wanted, model in (
        ("model", rule.takes_model, request.model),
        ("tokenizer", request.size_rule == "tokens", request.tokenizer),
    ):
        if wanted and model is not None:
            from selectit_dagster.inference.model_identity import inference_identity

            fingerprint[name] = inference_identity(model)
            if name == "model":
                fingerprint["dtype"] = model.dtype
    return fingerprint


def _ranking_of(folder: Path, curated: Path, records: Manifest) -> Manifest:
    """Return the ranking's manifest after checking that it ranks the records in ``curated``."""
    ranking = require_manifest(folder, made_by="ranking")
    if ranking.fingerprint["records"] != records.digest:
        raise ArtefactError(
            f"the ranking in {folder} is of other records than {curated}",
            hint="materialise the scores and the ranking again",
        )
    return ranking


def card_provenance(request: SelectionRequest) -> dict[str, Any]:
    """Return the part of the provenance that this arm's card states.

    An arm that takes no scores does not go out of date when the rating changes. Of local
    paths only the last name is kept: a moved folder is the same, and the manifest may be
    published.
    """
    given = request.provenance
    general = ("experiment", "source", "license")
    stated: dict[str, Any] = {key: given[key] for key in general if key in given}
    if request.by_scores:
        stated["models"] = [
            {
                "name": model["name"],
                "path": public_name(str(model.get("path", model["name"]))),
                "revision": model.get("revision"),
            }
            for model in given.get("models", [])
        ]
        if "rating" in given:
            stated["prompts"] = _prompt_facts(given["rating"])
    return stated


def _prompt_facts(rating: dict[str, Any]) -> dict[str, Any]:
    """Return where the rating prompts come from, and their texts."""
    from selectit_dagster.rating.prompts import load_prompts

    path = rating.get("prompts")
    prompts = load_prompts(path, int(rating["num_prompts"]))
    return {
        "file": public_name(path) if path else None,
        "texts": [prompt.text for prompt in prompts],
    }


def public_name(path: str) -> str:
    """Return a hub name as it is, and of a local path the last part."""
    local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    return path.rstrip("/").split("/")[-1] if local else path


def check_request(request: SelectionRequest) -> None:
    """Refuse a request that cannot work, before anything is loaded.

    Raises
    ------
    UserError
        For an unknown arm, a random arm without seed, or a missing ranking or model.
    """
    if request.kind not in arms():
        raise UserError(f"unknown arm {request.kind!r}", hint=f"one of {', '.join(sorted(arms()))}")
    rule = request.rule
    if rule.draws[0] is not None and request.seed is None:
        raise UserError(
            f"the {request.kind} arm needs a seed", hint="give it seeds, such as [1, 2]"
        )
    if request.by_scores and request.ranking is None:
        raise UserError(
            f"the arm {request.kind} needs a ranking",
            hint="rate the records with a scoring model first",
        )
    if rule.takes_model and request.model is None:
        raise UserError(
            f"the arm {request.kind} needs a model",
            hint="name one of the scoring models as the arm's model",
        )


def select(request: SelectionRequest, out: Path, progress: Progress | None = None) -> Manifest:
    """Write the subset that one arm chooses into ``out`` and return the manifest.

    ``data.*`` holds the records byte for byte in the format of the source, best first;
    ``dataset.parquet`` the columns for training; ``README.md`` the dataset card;
    ``candidates.parquet`` rank and score of every candidate. The manifest's digest is that of
    the chosen texts in order, so that a change of scores alone leaves what was trained on them
    fresh.

    Raises
    ------
    UserError
        When the request cannot be fulfilled.
    ArtefactError
        When records, ranking or scores do not belong together.
    """
    from selectit_dagster.selection.assemble import assemble

    check_request(request)
    fingerprint = selection_fingerprint(request)
    if is_current(out, fingerprint):
        return require_manifest(out, made_by="selective_alpaca")
    began = time.monotonic()
    with folder_lock(out, f"selecting {request.arm}"):
        made = assemble(request, resolved_count(request), out, progress or Silent())
        return write_manifest(
            out,
            kind="selected_dataset",
            fingerprint=fingerprint,
            files=made.names,
            counts=made.counts,
            details=made.details,
            versions=library_versions("numpy", "pyarrow", "duckdb", "torch", "transformers"),
            seconds=time.monotonic() - began,
            digest=made.content,
        )
