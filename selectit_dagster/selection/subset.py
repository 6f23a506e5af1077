"""Choose a subset with one selection arm and write it as a dataset.

All arms that compete choose from the same candidates, the records that could be ranked, and
choose equally many of them; only ``full`` takes every curated record. The subset of an arm
depends on the records and their ids, never on the order of a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.duckdb_tables import stored_batches
from selectit_dagster.artefacts.manifest import (
    Fingerprint,
    Manifest,
    make_or_current,
    require_manifest,
)
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.experiment.selection_section import arm_of
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.selection.arms.arm import Arm, arms
from selectit_dagster.selection.dataset_card import card_provenance
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
    arm, kind, parameters:
        Name of the subset (``random-2``), the kind of its arm, and the arm's other entries in the
        experiment file.
    seed:
        The draw, for arms that are drawn.
    records, ranking:
        Folders of the curated dataset and of the ranking. Where there is one, every arm chooses
        among its ranked records; an arm on stored scores cannot do without.
    scores:
        (model name, score folder).
    size_rule, size:
        ``share`` of the curated records, ``count``, ``tokens`` (as ``tokenizer`` counts them),
        or ``threshold``: the lowest SelectIT score, or this arm's own where ``parameters`` has it.
    model:
        The model of an arm that runs one; by its name the model whose scores an arm of a
        single model takes (default: the largest θ).
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
        found: Arm = arm_of({"kind": self.kind, **self.parameters})
        return found

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

    ``share`` is ``size`` times ``curated``, rounded down (in decimal arithmetic, so that 0.29 of
    100 is 29), at least 1 and at most the ``candidates`` that there are; ``threshold`` is the
    ``reaching`` records whose SelectIT score is at least that.

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
    rule, size = request.size_rule, request.size
    if request.ranking is not None and rule == "threshold":
        reaching = _reaching(request.ranking / RANKING_FILE, size)
    return selection_count(rule, size, curated=curated, candidates=candidates, reaching=reaching)


def _reaching(ranking: Path, threshold: float) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        scores = (batch.column(0) for batch in stored_batches(ranking, ["score"]))
        return sum(pc.sum(pc.greater_equal(s, threshold)).as_py() or 0 for s in scores)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ArtefactError(f"{ranking} cannot be read: {error}", hint="rank again") from error


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
    if identity := model_identity_of(request):
        fingerprint["dtype"] = identity.pop("dtype")
        fingerprint["model"] = identity
    if request.size_rule == "tokens" and request.tokenizer is not None:
        from selectit_dagster.inference.model_identity import inference_identity

        fingerprint["tokenizer"] = inference_identity(request.tokenizer)
    return fingerprint


def model_identity_of(request: SelectionRequest) -> dict[str, str]:
    """Return what the arm's own model is known by; empty where it takes none."""
    if not request.rule.takes_model or request.model is None:
        return {}
    from selectit_dagster.inference.model_identity import inference_identity

    return {**inference_identity(request.model), "dtype": request.model.dtype}


def _ranking_of(folder: Path, curated: Path, records: Manifest) -> Manifest:
    """Return the ranking's manifest after checking that it ranks the records in ``curated``."""
    ranking = require_manifest(folder, made_by="ranking")
    if ranking.fingerprint["records"] != records.digest:
        raise ArtefactError(
            f"the ranking in {folder} is of other records than {curated}",
            hint="materialise the scores and the ranking again",
        )
    return ranking


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
    return make_or_current(
        out,
        kind="selected_dataset",
        fingerprint=selection_fingerprint(request),
        make=lambda: assemble(request, resolved_count(request), out, progress or Silent()),
        keep_old=True,
    )
