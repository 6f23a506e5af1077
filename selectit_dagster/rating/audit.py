"""What departs from the paper to save time, and the sample on which its price is measured.

``layout: record-first`` lets the prompts about a record share its tokens. ``adaptive`` stops
asking about a record once it cannot plausibly reach the cut. Neither is exact, so neither
runs without an audit: a sample of records is also rated the paper's way, in full, and the
rank correlation and the overlap of the selected sets are stored with the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import Backend
from selectit_dagster.inference.length_batches import PlannedBatch
from selectit_dagster.progress import Progress
from selectit_dagster.rating import levels
from selectit_dagster.rating.prompts import rated_instruction
from selectit_dagster.rating.score_folder import ScoreFolder
from selectit_dagster.rating.score_store import FAILED, OK, PENDING, read_part, read_scores
from selectit_dagster.rating.shards import COLUMNS, ChunkWork, text_key

if TYPE_CHECKING:
    from selectit_dagster.rating.scoring import ScoringRequest

FOLDER = ".audit"
_SMALLEST_SAMPLE = 20
_LARGER_SAMPLE = "raise rating.audit_share, or leave layout and adaptive at their defaults"
Floats = levels.Array


@dataclass(frozen=True)
class Audit:
    """The audit of one run: the sample's exact scores, and the rule that they give.

    ``exact`` maps a record to its sentence-level score the paper's way; None where the run
    is exact itself.
    """

    request: ScoringRequest
    exact: dict[str, float] | None = None
    rule: StoppingRule | None = None
    figures: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        request: ScoringRequest,
        folder: ScoreFolder,
        backend: Backend,
        score: Callable[..., Manifest],
        progress: Progress,
    ) -> Audit:
        """Rate the audit sample the paper's way, where the request departs from it.

        Raises
        ------
        UserError
            When the sample is too small to tell anything.
        """
        rating = request.rating
        if rating.layout == "paper" and not rating.adaptive:
            return cls(request)
        sample = write_sample(request, folder.path / FOLDER / "records")
        exact_rating = rating.model_copy(update={"layout": "paper", "adaptive": False})
        exact = replace(request, records=sample, rating=exact_rating)
        manifest = score(exact, folder.path / FOLDER / "exact", progress, backend)
        stored = read_scores(folder.path / FOLDER / "exact", rating.num_prompts)
        good = stored.record_status == OK
        if int(good.sum()) < _SMALLEST_SAMPLE:
            raise UserError(
                f"only {int(good.sum())} of the audit sample's {len(good)} records could be rated, "
                "too few to measure what departing from the paper costs (at least "
                f"{_SMALLEST_SAMPLE})",
                hint=_LARGER_SAMPLE,
            )
        token = _token_scores(request, stored.probabilities[good])
        names = [name for name, fine in zip(stored.record_ids, good, strict=True) if fine]
        full = _sentence(request, token)
        figures = {
            "sample": len(names),
            "exact_tokens_per_second": manifest.details["tokens_per_second"],
        }
        rule = None
        if rating.adaptive:
            rule = StoppingRule.learn(request, token)
            figures |= cross_audit(request, token)
        return cls(request, dict(zip(names, full.tolist(), strict=True)), rule, figures)

    def report(self, folder: Path) -> dict[str, Any]:
        """Return what is stored of the audit: empty for an exact run."""
        if self.exact is None or self.figures is None:
            return {}
        if self.rule is not None:
            return {"audit": {"method": "adaptive", **self.figures}}
        found = self._scores_of_sample(folder)
        names = [name for name in self.exact if name in found]
        exact = np.array([self.exact[name] for name in names])
        other = np.array([found[name] for name in names])
        agreed = agreement(exact, other, self.request.selection_share)
        return {"audit": {"method": "record-first", **self.figures, **agreed}}

    def _scores_of_sample(self, folder: Path) -> dict[str, float]:
        scores: dict[str, float] = {}
        for path in sorted(folder.glob("part-*.parquet")):
            part = read_part(path)
            for i, name in enumerate(part.record_ids):
                if self.exact and name in self.exact and part.record_status[i] == OK:
                    token = _token_scores(self.request, part.probabilities[i])
                    scores[name] = float(_sentence(self.request, token))
        return scores


def write_sample(request: ScoringRequest, folder: Path) -> Path:
    """Write the audit sample's records and return their folder.

    A record belongs to it by its text's digest, so the sample does not depend on the order.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    share = request.rating.audit_share
    chosen: list[dict[str, str]] = []
    with pq.ParquetFile(request.records_file) as file:
        for batch in file.iter_batches(batch_size=4096, columns=list(COLUMNS)):
            for row in batch.to_pylist():
                instruction = rated_instruction(row["instruction"], row["input"])
                key = text_key((instruction, row["response"]))
                if int(key[-8:], 16) < share * (1 << 32):
                    chosen.append(row)
    if len(chosen) < _SMALLEST_SAMPLE:
        raise UserError(
            f"an audit share of {share:g} chooses {len(chosen)} records, too few to measure what "
            f"departing from the paper costs (at least {_SMALLEST_SAMPLE})",
            hint=_LARGER_SAMPLE,
        )
    write_parquet(folder / "records.parquet", pa.Table.from_pylist(chosen))
    return folder


def agreement(exact: Floats, other: Floats, share: float) -> dict[str, float]:
    """Return Spearman's rank correlation, and the overlap of the two best shares."""
    from scipy.stats import spearmanr

    size = max(1, round(share * len(exact)))
    best = [set(levels.rank_order(scores)[:size].tolist()) for scores in (exact, other)]
    constant = np.ptp(exact) == 0 or np.ptp(other) == 0
    return {
        "rank_correlation": 0.0 if constant else float(spearmanr(exact, other).statistic),
        "overlap": len(best[0] & best[1]) / size,
        "selected": size,
    }


def _token_scores(request: ScoringRequest, p: Any) -> Floats:  # noqa: ANN401 - array-like
    rating = request.rating
    if rating.ablation == "none":
        return levels.token_level(p, rating.variant)
    return levels.base_rating(p)


def _sentence(request: ScoringRequest, token: Floats) -> Floats:
    rating = request.rating
    return levels.sentence_level(token, 0.0 if rating.ablation == "model-r" else rating.alpha)


@dataclass(frozen=True)
class StoppingRule:
    """When to stop asking about a record.

    Attributes
    ----------
    cut:
        A score below which a record will not be selected: the sample's, less two standard
        errors of its share.
    slack:
        (K - 1,) the most that a score still rose, in the sample, after that many prompts.
    """

    request: ScoringRequest
    cut: float
    slack: Floats

    @classmethod
    def learn(cls, request: ScoringRequest, token: Floats) -> StoppingRule:
        """Learn the rule from token-level scores (n, K) of the audit sample."""
        share = request.selection_share
        full = _sentence(request, token)
        error = 2 * np.sqrt(share * (1 - share) / len(full))
        cut = float(np.quantile(full, max(0.0, 1 - share - error)))
        partial = [_sentence(request, token[:, : k + 1]) for k in range(token.shape[1] - 1)]
        return cls(request, cut, np.array([(full - part).max() for part in partial]))

    def bound(self, token: Floats) -> Floats:
        """Return the highest plausible final score after the prompts asked, (n, k) -> (n,)."""
        return _sentence(self.request, token) + self.slack[token.shape[1] - 1]

    def rounds(self, work: ChunkWork) -> Iterator[list[PlannedBatch]]:
        """Yield the batches of one prompt after the other, of the records still asked about.

        Between two rounds the batches must have been rated.
        """
        for prompt in range(len(self.slack) + 1):
            alive = [_pending(batch, work) for batch in work.batches if batch.prompt == prompt]
            yield [batch for batch in alive if batch is not None]
            if prompt < len(self.slack):
                self._stop(work, prompt + 1)

    def _stop(self, work: ChunkWork, asked: int) -> None:
        status = work.ratings.status
        open_rows = (status[:, :asked] == OK).all(axis=1) & (status == PENDING).any(axis=1)
        if not open_rows.any():
            return
        candidates = np.flatnonzero(open_rows)
        token = _token_scores(self.request, work.ratings.probabilities[candidates, :asked])
        bound = self.bound(token)
        for record, most in zip(candidates.tolist(), bound.tolist(), strict=True):
            if most < self.cut:
                reason = (
                    f"not asked: after {asked} prompts at most {most:.3f} is plausible, "
                    f"the cut is {self.cut:.3f}"
                )
                for prompt in np.flatnonzero(status[record] == PENDING).tolist():
                    status[record, prompt] = FAILED
                    work.ratings.reasons[record, prompt] = reason


def _pending(batch: PlannedBatch, work: ChunkWork) -> PlannedBatch | None:
    """Return the batch without the rows that are no longer asked."""
    kept = [n for n, at in enumerate(batch.targets) if work.ratings.status[at] == PENDING]
    if len(kept) == len(batch.targets):
        return batch
    if not kept:
        return None
    return PlannedBatch(tuple(batch.targets[n] for n in kept), batch.tokens.take(kept))


def cross_audit(request: ScoringRequest, token: Floats) -> dict[str, float]:
    """Return what stopping does to the sample: each half judged by the other half's rule.

    ``token``: (n, K) token-level scores. Returns rank correlation and overlap with the exact
    method, and the share of prompts that were not asked.
    """
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
    return {
        "rank_correlation": agreement(full, found, request.selection_share)["rank_correlation"],
        "overlap": agreement(full, ranked, request.selection_share)["overlap"],
        "selected": agreement(full, ranked, request.selection_share)["selected"],
        "prompts_saved": 1 - float(asked.mean()) / token.shape[1],
    }
