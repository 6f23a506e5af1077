"""Adaptive rating: stop asking prompts about a record that cannot plausibly reach the cut.

It is not exact, so it never runs without an audit: a sample of records is rated in full
first. The stopping rule is learned from it, and its rank correlation and the overlap of the
selected sets, measured crosswise on its two halves, are stored with the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.errors import UserError
from selectit_dagster.rating import levels
from selectit_dagster.rating.planned_batches import PlannedBatch
from selectit_dagster.rating.prompts import rated_instruction
from selectit_dagster.rating.score_store import FAILED, NOT_ASKED, OK, PENDING, read_scores
from selectit_dagster.rating.shards import COLUMNS, ChunkWork, text_key

if TYPE_CHECKING:
    from selectit_dagster.artefacts.manifest import Manifest
    from selectit_dagster.rating.scoring import ScoringRequest

FOLDER = ".audit"
_SMALLEST_SAMPLE = 20
Floats = levels.Array


@dataclass(frozen=True)
class StoppingRule:
    """When to stop asking about a record.

    Below ``cut`` a record will not be selected: the sample's, less two standard errors of its
    share. ``slack``: (K - 1,) the most that a score still rose, in the sample, after k prompts.
    """

    request: ScoringRequest
    cut: float
    slack: Floats

    @classmethod
    def learn(cls, request: ScoringRequest, token: Floats) -> StoppingRule:
        """Learn the rule from token-level scores (n, K) of the audit sample."""
        share, full = request.selection_share, _sentence(request, token)
        error = 2 * np.sqrt(share * (1 - share) / len(full))
        cut = float(np.quantile(full, max(0.0, 1 - share - error)))
        partial = [_sentence(request, token[:, : k + 1]) for k in range(token.shape[1] - 1)]
        return cls(request, cut, np.array([(full - part).max() for part in partial]))

    def bound(self, token: Floats) -> Floats:
        """Return the highest plausible final score after the prompts asked, (n, k) -> (n,)."""
        return _sentence(self.request, token) + self.slack[token.shape[1] - 1]

    def rounds(self, work: ChunkWork) -> Iterator[list[PlannedBatch]]:
        """Yield the batches of one prompt after the other; between two they must be rated."""
        for prompt in range(len(self.slack) + 1):
            alive = [work.left_of(batch) for batch in work.batches if batch.prompt == prompt]
            yield [batch for batch in alive if batch is not None]
            if prompt < len(self.slack):
                self._stop(work, prompt + 1)

    def _stop(self, work: ChunkWork, asked: int) -> None:
        status = work.ratings.status
        bound = self.bound(_token(self.request, work.ratings.probabilities[:, :asked]))
        hopeless = (status[:, :asked] == OK).all(axis=1) & (bound < self.cut)
        for record, prompt in np.argwhere(hopeless[:, None] & (status == PENDING)).tolist():
            status[record, prompt] = FAILED
            work.ratings.reasons[record, prompt] = (
                f"{NOT_ASKED}: after {asked} prompts at most {bound[record]:.3f} is plausible, "
                f"the cut is {self.cut:.3f}"
            )


def audited_rule(
    request: ScoringRequest, folder: Path, score_exactly: Callable[[ScoringRequest, Path], Manifest]
) -> tuple[StoppingRule, dict[str, Any]]:
    """Rate the audit sample in full; return the rule and the audit's figures.

    A sample that is too small to tell anything is a UserError.
    """
    exact = request.rating.model_copy(update={"adaptive": False})
    sample = replace(request, records=write_sample(request, folder / "records"), rating=exact)
    speed = score_exactly(sample, folder / "exact").details["tokens_per_second"]
    stored = read_scores(folder / "exact", request.rating.num_prompts)
    token = _token(request, stored.probabilities[stored.record_status == OK])
    _require_enough(len(token), f"of the audit sample's {len(stored.record_ids)} could be rated")
    figures = {"method": "adaptive", "sample": len(token), "exact_tokens_per_second": speed}
    return StoppingRule.learn(request, token), {**figures, **cross_audit(request, token)}


def write_sample(request: ScoringRequest, folder: Path) -> Path:
    """Write the audit sample's records and return their folder.

    A record belongs to it by its text's digest, so the sample does not depend on the order.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    share, chosen = request.rating.audit_share, []
    with pq.ParquetFile(request.records_file) as file:
        for batch in file.iter_batches(batch_size=4096, columns=list(COLUMNS)):
            for row in batch.to_pylist():
                instruction = rated_instruction(row["instruction"], row["input"])
                key = text_key((instruction, row["response"]))
                if int(key[-8:], 16) < share * (1 << 32):
                    chosen.append(row)
    _require_enough(len(chosen), f"are chosen by an audit share of {share:g}")
    write_parquet(folder / "records.parquet", pa.Table.from_pylist(chosen))
    return folder


def cross_audit(request: ScoringRequest, token: Floats) -> dict[str, float]:
    """Return what stopping does to the sample: each half judged by the other half's rule.

    ``token``: (n, K) token-level scores. Returns Spearman's rank correlation and the overlap
    of the selected sets with the exact method's, and the share of prompts not asked.
    """
    from scipy.stats import spearmanr

    full = _sentence(request, token)
    found, asked = full.copy(), np.full(len(full), token.shape[1])
    for half in (0, 1):
        rule = StoppingRule.learn(request, token[1 - half :: 2])
        rows = np.arange(half, len(full), 2)
        for k in range(1, token.shape[1]):
            still = rows[asked[rows] == token.shape[1]]
            stopped = still[rule.bound(token[still, :k]) < rule.cut]
            asked[stopped] = k
            found[stopped] = cast(Floats, _sentence(request, token[stopped, :k]))
    # a stopped record is not ranked, whatever its score so far
    ranked = np.where(asked == token.shape[1], found, found - (np.ptp(full) + full.max() + 1))
    size = max(1, round(request.selection_share * len(full)))
    best = [set(levels.rank_order(scores)[:size].tolist()) for scores in (full, ranked)]
    constant = np.ptp(full) == 0 or np.ptp(found) == 0
    return {
        "rank_correlation": 0.0 if constant else float(spearmanr(full, found).statistic),
        "overlap": len(best[0] & best[1]) / size,
        "selected": size,
        "prompts_saved": 1 - float(asked.mean()) / token.shape[1],
    }


def _require_enough(size: int, which: str) -> None:
    if size < _SMALLEST_SAMPLE:
        raise UserError(
            f"only {size} records {which}, too few to measure what adaptive rating costs "
            f"(at least {_SMALLEST_SAMPLE})",
            hint="raise rating.audit_share, or leave adaptive at its default",
        )


def _token(request: ScoringRequest, p: Any) -> Floats:  # noqa: ANN401 - array-like
    if request.rating.ablation != "none":
        return levels.base_rating(p)
    return levels.token_level(p, request.rating.variant)


def _sentence(request: ScoringRequest, token: Floats) -> Floats:
    rating = request.rating
    return levels.sentence_level(token, 0.0 if rating.ablation == "model-r" else rating.alpha)
