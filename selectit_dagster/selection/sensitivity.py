"""How much the selected set depends on alpha, K, models and variants, and on chance.

Everything is computed anew from the stored distributions, in memory, on a seeded sample of
at most :data:`SAMPLE` records. Two questions are answered:

* Settings: for each other value of a parameter, what share of the selected set stays
  (overlap), and how alike are the rankings (Spearman's rank correlation). Where two engines
  ran the same weights, also what the engine changes.
* Stability: the K prompts are drawn anew with replacement, many times. The same is done
  after the records were shuffled within each prompt, which destroys all agreement between
  prompts; what is kept then is chance. A set that is no more stable than that says nothing
  about the records, and the summary says so in plain words.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import write_bytes, write_json
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    library_versions,
    make_or_current,
    require_manifest,
)
from selectit_dagster.errors import UserError
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.selection.ranking import RankingRequest, ranking_fingerprint
from selectit_dagster.selection.resampling import (
    SAMPLE,
    TokenScores,
    chosen,
    load_token_scores,
    rank_correlation,
    stability,
    vary,
)
from selectit_dagster.selection.subset import selection_count

TABLE_FILE = "sensitivity.json"
PLOT_FILE = "sensitivity.png"
_FORMAT = 1


@dataclass(frozen=True)
class SensitivityRequest:
    """What the sensitivity is computed from.

    Attributes
    ----------
    size_rule, size:
        As in the selection; a count is scaled to the sample.
    seed:
        Of the sample and of the resamples.
    resamples:
        How often the prompts are drawn anew.
    """

    ranking: RankingRequest
    size_rule: str
    size: float
    seed: int = 1
    resamples: int = 100


def sensitivity_fingerprint(request: SensitivityRequest) -> Fingerprint:
    """Return what the sensitivity depends on."""
    return {
        "format": _FORMAT,
        "ranking": ranking_fingerprint(request.ranking),
        "size": {request.size_rule: request.size},
        "seed": request.seed,
        "resamples": request.resamples,
        "sample": SAMPLE,
    }


def sensitivity(
    request: SensitivityRequest, out: Path, progress: Progress | None = None
) -> Manifest:
    """Write ``sensitivity.json`` and ``sensitivity.png`` and return the manifest.

    ``details``: ``settings`` (one row per other setting: factor, value, overlap, spearman),
    ``stability``, ``sentence``, ``pairwise`` overlaps with their ``labels``, ``selected``
    of ``records``, and ``sampled``.

    Raises
    ------
    UserError
        When no record was rated by all models.
    """
    from selectit_dagster.selection.selection_plots import sensitivity_heat_map

    fingerprint = sensitivity_fingerprint(request)

    def make() -> Content:
        scores = load_token_scores(request.ranking, fingerprint["ranking"]["thetas"], request.seed)
        if not len(scores.record_ids):
            raise UserError(
                "no record was rated by all models under all prompts",
                hint="see the ranking's counts of too_long and failed records",
            )
        count = _count(request, scores)
        reporter = progress or Silent()
        details: dict[str, Any] = {
            "records": len(scores.record_ids),
            "selected": count,
            "sampled": scores.sampled,
            **vary(scores, count),
        }
        details["settings"] += engine_rows(request.ranking, scores, count)
        details["stability"] = stability(
            scores, count, resamples=request.resamples, seed=request.seed, progress=reporter
        )
        details["sentence"] = sentence(details)
        write_json(out / TABLE_FILE, details)
        write_bytes(out / PLOT_FILE, sensitivity_heat_map(details))
        return Content(
            files=[TABLE_FILE, PLOT_FILE],
            counts={"records": details["records"], "selected": count},
            details=details,
            versions=library_versions("numpy", "scipy", "matplotlib"),
        )

    return make_or_current(out, kind="sensitivity", fingerprint=fingerprint, make=make)


def engine_rows(request: RankingRequest, scores: TokenScores, count: int) -> list[dict[str, Any]]:
    """Return a row for each two models of the same weights that two engines ran.

    Overlap and rank correlation are between these two alone, not with the ranking as it is.
    """
    models = sorted(request.scores)
    stored = [require_manifest(folder, made_by="the scores").fingerprint for _, folder in models]
    weights = [{k: v for k, v in one.items() if k.startswith("model.")} for one in stored]
    rows = []
    for i, j in itertools.combinations(range(len(stored)), 2):
        engines = [_engine(stored[i]), _engine(stored[j])]
        if not weights[i] or weights[i] != weights[j] or engines[0] == engines[1]:
            continue
        one, two = (scores.fused(replace(request, scores=(models[k],))) for k in (i, j))
        rows.append(
            {
                "factor": "engine",
                "value": f"{engines[0]} against {engines[1]}",
                "overlap": float((chosen(one, count) & chosen(two, count)).sum() / count),
                "spearman": rank_correlation(one, two),
            }
        )
    return rows


def _engine(stored: Fingerprint) -> str:
    """Return what ran a model, as a person says it."""
    there = stored.get("server.engine")
    if not there:
        return f"this process ({stored.get('dtype')})"
    return f"{there['engine']} {there['version']} ({there['dtype']})"


def _count(request: SensitivityRequest, scores: TokenScores) -> int:
    """Return how many of the sampled records are selected."""
    rule, size, usable = request.size_rule, request.size, len(scores.record_ids)
    curated = min(scores.total, SAMPLE)
    if rule == "count" and scores.sampled:
        rule, size = "share", min(1.0, request.size / scores.total)
    reached = int((scores.fused(scores.base) >= size).sum()) if rule == "threshold" else None
    return selection_count(rule, size, curated=curated, candidates=usable, reaching=reached)


def sentence(details: dict[str, Any]) -> str:
    """Return the stability in plain words."""
    found = details["stability"]
    sample = " (measured on a sample)" if details["sampled"] else ""
    if found is None:
        return (
            "With a single rating prompt there is nothing to resample: how stable the "
            "selected set is cannot be said."
        )
    low, high = found["interval"]
    text = (
        f"When the rating prompts are drawn anew, {found['overlap']:.1%} of the selected "
        f"records stay (95 % of the draws: {low:.1%} to {high:.1%}){sample}; if the prompts "
        f"did not agree at all it would be {found['chance']:.1%}."
    )
    if not found["more_stable_than_chance"]:
        text += (
            " The selected set is no more stable than chance: with these models and prompts "
            "the scores say next to nothing about the records."
        )
    return text
