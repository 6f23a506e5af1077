"""The equations of SelectIT, each in one place (Liu et al. 2024, NeurIPS version, section 3).

Equation 1 defines a rating as a score from 1 to K, 2 is S_base (section 3.1), 3 is S_token (3.1),
4 is S_sent (3.2) and 5 is S_model (3.3). The main results and the ablations Token-R, Sentence-R
and Model-R are table 1; the number of prompts is table 2, alpha is table 3.

Everything here is arithmetic on stored rating distributions, on NumPy arrays of any
leading shape, in float64. ``R`` is the number of ratings, ``K`` of rating prompts, ``M`` of
models. The variant ``released-code`` repeats what the authors' scripts compute instead:
a second softmax over the distribution, and fusion weights that do not sum to one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Variant = Literal["paper", "released-code"]
Ablation = Literal["none", "sentence-r", "model-r"]

# The released fusion script divides by the sizes of the models that it was written for.
RELEASED_WEIGHTS = (7 / 20, 13 / 20, 70 / 90)


def rating_distribution(logits: npt.ArrayLike) -> Array:
    """Return P' = softmax over the R rating tokens alone (section 3.1, in equation 2).

    P'_k = P_k / sum_j P_j: the rest of the vocabulary cancels, so logits and
    log-probabilities give the same. ``logits``: (..., R); returns (..., R).
    """
    values = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def base_rating(p: npt.ArrayLike) -> Array:
    """Return S_base = argmax_k P'_k, a rating from 1 to R (section 3.1, equation 2).

    Of equal probabilities the lower rating counts. ``p``: (..., R); returns (...), NaN
    where any P'_k is.
    """
    values = np.asarray(p, dtype=np.float64)
    rating = values.argmax(axis=-1) + 1.0
    return np.where(np.isnan(values).any(axis=-1), np.nan, rating)


def token_level(p: npt.ArrayLike, variant: Variant = "paper") -> Array:
    """Return S_token = S_base / (R - 1) * sum_k |P'_k - P'_{S_base}| (section 3.1, equation 3).

    The rating, weighted by how far the model prefers it to the others.
    ``released-code`` passes P' through a softmax once more first, which confines the score
    of R = 5 to [0, 1.279].

    Parameters
    ----------
    p:
        Rating distributions P', (..., R), R >= 2.

    Returns
    -------
    numpy.ndarray
        (...), from 0 (uniform) to R (certain of the highest); NaN where ``p`` holds NaN.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] < 2:
        raise ValueError(f"rating distributions need a last axis of R >= 2, found {values.shape}")
    if variant == "released-code":
        values = rating_distribution(values)
    margin = np.abs(values - values.max(axis=-1, keepdims=True)).sum(axis=-1)
    return base_rating(values) * margin / (values.shape[-1] - 1)


def sentence_level(s: npt.ArrayLike, alpha: float = 0.2) -> Array:
    """Return S_sent = mean_k(S_token) / (1 + alpha * std_k(S_token)) (section 3.2, equation 4).

    Prompts that disagree about a record lower its score; std is the population's.

    Parameters
    ----------
    s:
        Token-level scores, (..., K). NaN marks a prompt that was not asked: mean and std
        are over those that were.
    alpha:
        Weight of the disagreement, 0 for none.

    Returns
    -------
    numpy.ndarray
        (...); NaN where no prompt was asked.
    """
    values = np.asarray(s, dtype=np.float64)
    asked = ~np.isnan(values)
    count = asked.sum(axis=-1)
    divisor = np.where(count > 0, count, np.nan)
    mean = np.where(asked, values, 0.0).sum(axis=-1) / divisor
    deviation = np.where(asked, values - mean[..., None], 0.0)
    std = np.sqrt((deviation**2).sum(axis=-1) / divisor)
    return mean / (1.0 + alpha * std)


def fusion_weights(theta: npt.ArrayLike) -> Array:
    """Return theta_i / sum_j theta_j, the models' shares in the fusion (3.3, equation 5)."""
    values = np.asarray(theta, dtype=np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values)) or not np.all(values > 0):
        raise ValueError(f"fusion needs one positive weight per model, found {values!r}")
    return values / values.sum()


def model_level(s: npt.ArrayLike, theta: npt.ArrayLike, variant: Variant = "paper") -> Array:
    """Return S_model = sum_i theta_i / sum_j theta_j * S_sent,i (section 3.3, equation 5).

    Parameters
    ----------
    s:
        Sentence-level scores, (M, ...).
    theta:
        (M,) fusion weights, in the paper the models' parameter counts.
    variant:
        ``released-code`` takes ``theta`` as the weights themselves, without dividing by
        their sum; ``RELEASED_WEIGHTS`` are the scripts' own.

    Returns
    -------
    numpy.ndarray
        (...); NaN where any model's score is.
    """
    scores = np.asarray(s, dtype=np.float64)
    weights = np.asarray(theta, dtype=np.float64)
    if weights.shape != scores.shape[:1]:
        raise ValueError(f"{scores.shape[0]} models but {weights.size} fusion weights")
    if variant == "paper":
        weights = fusion_weights(weights)
    return np.tensordot(weights, scores, axes=(0, 0))


def record_score(
    p: npt.ArrayLike,
    *,
    alpha: float = 0.2,
    variant: Variant = "paper",
    ablation: Ablation = "none",
) -> Array:
    """Return one model's S_sent from its rating distributions: equations 2 to 4 in a row.

    The ablations of the paper's table 1 replace the token level by the plain rating:
    ``sentence-r`` feeds S_base into the sentence level, ``model-r`` feeds the mean S_base
    over the prompts straight into the model level.

    ``p``: (..., K, R), NaN where a prompt was not asked; returns (...).
    """
    if ablation == "none":
        return sentence_level(token_level(p, variant), alpha)
    return sentence_level(base_rating(p), alpha if ablation == "sentence-r" else 0.0)


def rank_order(scores: npt.ArrayLike, variant: Variant = "paper") -> npt.NDArray[np.int64]:
    """Return the indices of ``scores`` (N,), best first; the selection takes the first share.

    Among equal scores the earlier record comes first; in ``released-code`` the later one,
    as sorting (score, index) pairs downwards does. NaN is refused.
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("records without a score cannot be ranked")
    if variant == "released-code":
        return np.lexsort((-np.arange(values.size), -values))
    return np.argsort(-values, kind="stable")
