"""Rank all records by the model-level score, from the stored rating distributions alone.

No model is loaded: K, alpha, variant, ablation and fusion weights are applied anew to what
the scoring stage stored, so another ranking costs seconds. A record that any model could
not rate is not ranked; it is listed with its status and reason.

Everything streams: each model's distributions become one sentence-level score per record,
the models are joined by record id, fused, and sorted, outside memory where need be.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import stored_batches
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    library_versions,
    make_or_current,
    read_manifest,
    require_manifest,
)
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.rating import levels
from selectit_dagster.selection.fusion import fuse

RANKING_FILE = "ranking.parquet"
# what the stored file means; a change makes stored rankings out of date
_FORMAT = 1
_EXAMPLES, _BINS = 10, 20
_QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankingRequest:
    """What a ranking is made from.

    Attributes
    ----------
    records:
        Folder of the curated dataset.
    scores:
        (model name, score folder) of each model.
    num_prompts:
        K, at most the number of prompts that were stored.
    num_ratings:
        R, the number of ratings that were stored.
    alpha:
        Weight of the disagreement between prompts, at least 0.
    variant:
        ``paper`` or ``released-code``.
    ablation:
        ``none``, ``sentence-r`` or ``model-r``.
    thetas:
        (model name, fusion weight) where it is not the model's parameter count.
    rated, combine:
        Folder of the rated texts, where those are not the records; and how a record's texts
        are combined: ``mean``, ``min``, ``last``, or ``margin`` (the first less the second).
    """

    records: Path
    scores: tuple[tuple[str, Path], ...]
    num_prompts: int
    num_ratings: int
    alpha: float
    variant: levels.Variant
    ablation: levels.Ablation
    thetas: tuple[tuple[str, float], ...] = ()
    rated: Path | None = None
    combine: str = "mean"

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers and names that every score depends on."""
        names = ("num_prompts", "num_ratings", "alpha", "variant", "ablation")
        return {name: getattr(self, name) for name in names}

    def record_scores(self, p: npt.ArrayLike) -> Floats:
        """Return (n,) S_sent of one model from its distributions (n, K, R)."""
        return levels.record_score(
            p, alpha=self.alpha, variant=self.variant, ablation=self.ablation
        )


def fusion_thetas(request: RankingRequest) -> dict[str, float]:
    """Return each model's fusion weight θ by model name, in the order of the names.

    A weight that the request does not give is the parameter count in the model's score
    manifest. For ``released-code``, which does not divide by the sum, weights taken from
    parameter counts are divided here, so that scores keep their scale; exactly three models
    have the scripts' own weights, in the order in which the models are given.

    Raises
    ------
    UserError
        When there is no model, a name occurs twice, or a weight is for no model.
    ArtefactError
        When a model's score folder is incomplete.
    """
    names = sorted(name for name, _ in request.scores)
    if not names or len(set(names)) != len(names):
        raise UserError(
            f"a ranking needs models with different names, found {names}",
            hint="name each scoring model once",
        )
    given = dict(request.thetas)
    if unknown := sorted(set(given) - set(names)):
        raise UserError(
            f"fusion weight for {unknown[0]!r}, which is not one of {names}",
            hint="name a scoring model of the experiment",
        )
    thetas = {}
    for name, folder in sorted(request.scores):
        manifest = require_manifest(folder, made_by=f"uncertainty_scores/{name}")
        thetas[name] = float(given.get(name, manifest.details["parameters"]))
        if not 0 < thetas[name] < float("inf"):
            raise UserError(
                f"fusion weight of {name} must be positive, found {thetas[name]}",
                hint="give a number above 0, such as the model's parameter count",
            )
    if _takes_released_weights(request):
        return dict(
            sorted(zip((n for n, _ in request.scores), levels.RELEASED_WEIGHTS, strict=True))
        )
    if request.variant == "released-code" and not given:
        total = sum(thetas.values())
        return {name: theta / total for name, theta in thetas.items()}
    return thetas


def _takes_released_weights(request: RankingRequest) -> bool:
    three = len(request.scores) == len(levels.RELEASED_WEIGHTS)
    return request.variant == "released-code" and not request.thetas and three


def ranking_fingerprint(request: RankingRequest) -> Fingerprint:
    """Return what the ranking's content depends on."""
    records = require_manifest(request.records, made_by="curated_dataset")
    fingerprint = {
        "format": _FORMAT,
        "records": records.digest,
        "scores": {
            name: require_manifest(folder, made_by=f"uncertainty_scores/{name}").digest
            for name, folder in sorted(request.scores)
        },
        **request.parameters,
        "thetas": fusion_thetas(request),
    }
    if request.rated is not None:
        fingerprint["rated"] = require_manifest(request.rated, made_by="rated_texts").digest
        fingerprint["combine"] = request.combine
    return fingerprint


def rank(request: RankingRequest, out: Path, progress: Progress | None = None) -> Manifest:
    """Rank the records into ``out/ranking.parquet`` and return the manifest.

    The file lists ranked records best first, then the others by record id: ``record_id``,
    ``rank`` (1 is best; null where not ranked), ``score`` (null likewise),
    ``sentence_score`` per model, ``status`` and ``reason``. Equal scores are ordered by
    record id; in ``released-code`` by source position, the later record first.

    Raises
    ------
    UserError
        When more prompts or other ratings are asked for than were stored.
    ArtefactError
        When a model's scores are not exactly one set per curated record.
    """
    fingerprint = ranking_fingerprint(request)
    thetas = fingerprint["thetas"]

    def make() -> Content:
        counts, details = _counted(fuse(request, thetas, out, progress or Silent()))
        _check_balance(counts, request.records)
        return Content(
            files=[RANKING_FILE],
            counts=counts,
            details=_details(request, thetas) | details,
            versions=library_versions("numpy", "pyarrow", "duckdb"),
        )

    return make_or_current(out, kind="ranking", fingerprint=fingerprint, make=make)


def _counted(ranking: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the counts of a written ranking, and what is said of its scores and the unranked.

    The latter lie last, by record id. Arms that need no ranking draw from the same candidates:
    ``excluded_sha256`` is the digest of the ids that are not among them.
    """
    counts = {"kept": 0, "ranked": 0, "too_long": 0, "failed": 0}
    scores: list[Floats] = [np.empty(0)]
    examples: list[dict[str, str]] = []
    excluded = hashlib.sha256()
    for batch in stored_batches(ranking, ["record_id", "status", "reason", "score"]):
        scores.append(batch.column("score").drop_null().to_numpy())
        counts["kept"] += batch.num_rows
        counts["ranked"] += len(scores[-1])
        for row in batch.filter(batch.column("score").is_null()).select([0, 1, 2]).to_pylist():
            mark = "\n" if counts["too_long"] + counts["failed"] else ""
            excluded.update((mark + repr(row["record_id"])).encode())
            counts[row["status"]] += 1
            if len(examples) < _EXAMPLES:
                examples.append({**row, "reason": row["reason"] or ""})
    return counts, {
        "score": _summary(np.concatenate(scores)),
        "excluded_sha256": excluded.hexdigest(),
        "not_ranked_examples": examples,
    }


def _summary(scores: Floats) -> dict[str, Any]:
    """Return minimum, quantiles, mean, spread and histogram; nothing where there is no score."""
    if not scores.size:
        return {}
    counts, edges = np.histogram(scores, _BINS)
    quantiles = np.quantile(scores, list(_QUANTILES.values()))
    return {
        "min": float(scores.min()),
        "max": float(scores.max()),
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        **dict(zip(_QUANTILES, map(float, quantiles), strict=True)),
        "distinct": int(np.unique(scores).size),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def _check_balance(counts: dict[str, int], records: Path) -> None:
    """Check kept = ranked + too_long + failed, and that these are the curated records."""
    curated = require_manifest(records, made_by="curated_dataset").counts.get("kept")
    parts = counts["ranked"] + counts["too_long"] + counts["failed"]
    if counts["kept"] != parts or curated not in (None, counts["kept"]):
        raise ArtefactError(
            f"the balance does not hold: {curated} curated records, {counts['kept']} in the "
            f"ranking, of them {parts} ranked, too long or failed",
            hint="run the curation and the scoring again",
        )


def _details(request: RankingRequest, thetas: dict[str, float]) -> dict[str, Any]:
    """Return what later stages, pages and reports need to know of how it was ranked."""
    return {
        "theta": thetas,
        "models": {
            name: _model_facts(manifest)
            for name, folder in sorted(request.scores)
            if (manifest := read_manifest(folder)) is not None
        },
        "parameters": request.parameters,
        **({"combine": request.combine} if request.rated is not None else {}),
        "warnings": _warnings(request, thetas),
    }


def _model_facts(scores: Manifest) -> dict[str, Any]:
    """Return what a scoring model is known by: its hub commit, or the hash of its weights."""
    commit = scores.details.get("revision") or scores.fingerprint.get("model.commit")
    weights = scores.fingerprint.get("model.weights")
    return {
        "revision": commit or (f"sha256:{weights[:12]}" if weights else None),
        "parameters": scores.details.get("parameters"),
        "digest": scores.digest,
    }


def _warnings(request: RankingRequest, thetas: dict[str, float]) -> list[str]:
    warnings = []
    given = {name for name, _ in request.thetas}
    if given and given != set(thetas):
        defaults = ", ".join(sorted(set(thetas) - given))
        warnings = [
            f"fusion weights were given for {', '.join(sorted(given))} and taken from the "
            f"parameter count for {defaults}: check that both are on one scale"
        ]
    if _takes_released_weights(request):
        told = ", ".join(f"{name} {theta:.4g}" for name, theta in thetas.items())
        warnings = [f"the weights are those of the authors' scripts, by the models' order: {told}"]
    return warnings
