"""The arithmetic of the sensitivity analysis, on token-level scores in memory."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.progress import Progress
from selectit_dagster.rating import levels
from selectit_dagster.rating.score_reader import StoredScores, stored_prompts
from selectit_dagster.selection.fusion import SCORE_DECIMALS

if TYPE_CHECKING:
    from selectit_dagster.selection.ranking import RankingRequest

ALPHAS = (0.0, 0.1, 0.2, 0.5, 1.0)
SAMPLE = 200_000
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
# the chance level is the mean over shuffles, each with a tenth of the draws
_SHUFFLES = 20
_DRAWS_PER_SHUFFLE = 0.1


@dataclass(frozen=True)
class TokenScores:
    """What all rankings of the analysis are computed from.

    Attributes
    ----------
    record_ids:
        (N,) sorted, so that a stable sort breaks ties by record id.
    probabilities:
        (M, N, K, R) float32, K all stored prompts.
    thetas:
        Fusion weights of the M models.
    base:
        The request that the others are compared with.
    total:
        Number of records before sampling.
    """

    record_ids: list[str]
    probabilities: npt.NDArray[np.float32]
    thetas: dict[str, float]
    base: RankingRequest
    total: int

    @property
    def sampled(self) -> bool:
        """Whether this is a sample of the records."""
        return self.total > SAMPLE

    def tokens(self, request: RankingRequest) -> Floats:
        """Return (M, N, K) token-level scores (or plain ratings) of its models and prompts."""
        asked = [list(self.thetas).index(name) for name, _ in sorted(request.scores)]
        p = self.probabilities[asked, :, : request.num_prompts]
        if request.ablation != "none":
            return levels.base_rating(p)
        return levels.token_level(p, request.variant)

    def fused(self, request: RankingRequest, tokens: Floats | None = None) -> Floats:
        """Return (N,) model-level scores."""
        found = self.tokens(request) if tokens is None else tokens
        alpha = 0.0 if request.ablation == "model-r" else request.alpha
        thetas = [self.thetas[name] for name, _ in sorted(request.scores)]
        scores = levels.model_level(levels.sentence_level(found, alpha), thetas, request.variant)
        return np.round(scores, SCORE_DECIMALS)


def load_token_scores(request: RankingRequest, thetas: dict[str, float], seed: int) -> TokenScores:
    """Read the distributions of the records that all models rated under all prompts.

    Above SAMPLE records those with the smallest SHA-256 of ``<seed>:<record id>`` are read.
    """
    folders = dict(request.scores)
    ratings = request.num_ratings
    manifests = [StoredScores(name, folders[name], 1, ratings).manifest for name in thetas]
    stored = min(map(stored_prompts, manifests))
    total = int(manifests[0].counts["records"])
    # a record's 64-bit hash lies below this for about SAMPLE of them
    limit = 1 << 64 if total <= SAMPLE else int((1 << 64) * (SAMPLE / total))
    parts = [_read_model(n, folders[n], stored, ratings, seed, limit) for n in thetas]
    common = sorted(set.intersection(*(set(part) for part in parts)))[:SAMPLE]
    shape = (len(parts), len(common), stored, ratings)
    probabilities = np.empty(shape, dtype=np.float32)
    for number, part in enumerate(parts):
        for index, record in enumerate(common):
            probabilities[number, index] = part[record]
        part.clear()
    return TokenScores(common, probabilities, thetas, request, total)


def _read_model(
    name: str, folder: Path, prompts: int, ratings: int, seed: int, limit: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the (K, R) distributions of the sampled records that are ok throughout."""
    store = StoredScores(name, folder, prompts, ratings)
    found: dict[str, npt.NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory() as scratch, Workspace(Path(scratch)) as work:
        for batch in store.in_any_order(work):
            usable = np.flatnonzero(batch.status == 0)
            names = batch.record_ids.take(usable).to_pylist()
            for index, record in zip(usable, names, strict=True):
                digest = hashlib.sha256(f"{seed}:{record}".encode()).digest()
                if int.from_bytes(digest[:8], "big") < limit:
                    found[record] = batch.probabilities[index].copy()
    return found


def chosen(scores: Floats, count: int) -> npt.NDArray[np.bool_]:
    """Return (N,) which records are among the best ``count``; ties by position."""
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def settings_of(scores: TokenScores) -> list[tuple[str, str, RankingRequest]]:
    """Return (factor, value, request) of every setting that is compared with the base."""
    base, stored = scores.base, scores.probabilities.shape[2]
    models = sorted(base.scores)
    variants: tuple[levels.Variant, ...] = ("paper", "released-code")
    ablations: tuple[levels.Ablation, ...] = ("none", "sentence-r", "model-r")
    others = [
        *(("alpha", f"{a:g}", replace(base, alpha=a)) for a in ALPHAS),
        *(("K", str(k), replace(base, num_prompts=k)) for k in range(1, stored + 1)),
        *(("only model", model[0], replace(base, scores=(model,))) for model in models),
        *(("variant", v, replace(base, variant=v)) for v in variants),
        *(("ablation", a, replace(base, ablation=a)) for a in ablations),
    ]
    return [("base", "base", base), *((f, v, s) for f, v, s in others if s != base)]


def vary(scores: TokenScores, count: int) -> dict[str, Any]:
    """Return the table of settings and the pairwise overlaps of their selected sets.

    Overlap is the share of the ``count`` selected records that two sets have in common.
    """
    named = settings_of(scores)
    fused = [scores.fused(setting) for _, _, setting in named]
    masks = np.stack([chosen(values, count) for values in fused])
    overlaps = (masks.astype(np.float32) @ masks.astype(np.float32).T) / count
    rows = []
    for index, (factor, value, _) in enumerate(named[1:], start=1):
        rows.append(
            {
                "factor": factor,
                "value": value,
                "overlap": float(overlaps[0, index]),
                "spearman": rank_correlation(fused[0], fused[index]),
            }
        )
    labels = [name if factor == "base" else f"{factor} {name}" for factor, name, _ in named]
    return {
        "settings": rows,
        "labels": labels,
        "pairwise": np.round(overlaps.astype(float), 4).tolist(),
        "chance_overlap": count / len(scores.record_ids),
    }


def rank_correlation(one: Floats, two: Floats) -> float:
    """Return Spearman's rank correlation of two rankings of the same records.

    Where all scores are equal it is that of the orders, which then go by record id.
    """
    from scipy.stats import spearmanr

    if one.size < 2:
        return 1.0
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        places = [np.argsort(np.argsort(-scores, kind="stable")) for scores in (one, two)]
        return float(spearmanr(*places).statistic)
    return float(spearmanr(one, two).statistic)


def stability(
    scores: TokenScores, count: int, *, resamples: int, seed: int, progress: Progress
) -> dict[str, Any] | None:
    """Return how much of the selected set stays under resampled prompts, and by chance.

    None with a single prompt. ``chance`` is the mean overlap after the records were
    shuffled within each prompt and model, averaged over shuffles; the set is more stable
    than chance when its own mean overlap is above that by two standard deviations of the
    shuffles' means.
    """
    base = scores.base
    asked = base.num_prompts
    if asked < 2:
        return None
    rng = np.random.default_rng(seed)
    tokens = scores.tokens(base)
    draws = rng.integers(0, asked, (resamples, asked))
    few = draws[: max(2, int(resamples * _DRAWS_PER_SHUFFLE))]
    total = resamples + _SHUFFLES * len(few)

    def overlaps(values: Floats, drawn: Indices, done: int) -> Floats:
        reference = chosen(scores.fused(base, values), count)
        found = []
        for number, prompts in enumerate(drawn):
            again = chosen(scores.fused(base, values[:, :, prompts]), count)
            found.append((reference & again).sum() / count)
            progress.update(done + number + 1, total)
        return np.array(found)

    observed = overlaps(tokens, draws, 0)
    by_chance = []
    for number in range(_SHUFFLES):
        # the records in another order for each model and prompt
        mixed = rng.permuted(tokens, axis=1)
        by_chance.append(overlaps(mixed, few, resamples + number * len(few)).mean())
    shuffled = np.array(by_chance)
    upper = float(shuffled.mean() + 2 * shuffled.std(ddof=1))
    return {
        "overlap": float(observed.mean()),
        "interval": [float(q) for q in np.quantile(observed, [0.025, 0.975])],
        "chance": float(shuffled.mean()),
        "chance_upper": upper,
        "resamples": resamples,
        "more_stable_than_chance": bool(observed.mean() > upper),
    }
