"""Judge a selection by the known quality of the records: the only stage that reads it.

Nothing that rates, selects or tunes may import this module or open its file. It takes scores by
record id, as any engine gives them, and says how well they part right records from wrong ones.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selectit_dagster.rating.levels import token_level

KNOWN_QUALITY: Final = (
    Path(__file__).resolve().parents[2]
    / "selectit_dagster"
    / "miniature"
    / "data"
    / "known_quality.jsonl"
)


@dataclass(frozen=True)
class Verdict:
    """How well one score parts right records from the others.

    `right_against_wrong` and `right_against_rest` are areas under the ROC curve, 0.5 for chance;
    `selected` counts the qualities in the selected top.
    """

    level: str
    model: str
    right_against_wrong: float
    right_against_rest: float
    selected: dict[str, int]

    @property
    def share_right(self) -> float:
        """Share of right records among the selected, 0 to 1."""
        return self.selected.get("right", 0) / max(1, sum(self.selected.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as plain values, for JSON."""
        return {**asdict(self), "share_right": self.share_right}


def read_known_quality(path: Path = KNOWN_QUALITY) -> dict[str, str]:
    """Return the quality of every record of the shipped pools, by id."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["quality"] for row in rows}


def area_under_curve(higher: Iterable[float], lower: Iterable[float]) -> float:
    """Return the area under the ROC curve: how often a member of `higher` outscores one of `lower`.

    A tie counts half (the Mann-Whitney statistic, U / (n·m)).

    Raises
    ------
    ValueError
        If one of the two is empty.
    """
    upper, under = np.sort(np.fromiter(higher, float)), np.sort(np.fromiter(lower, float))
    if not upper.size or not under.size:
        raise ValueError("the area under the ROC curve needs records of both kinds")
    below = np.searchsorted(under, upper, "left").sum()
    not_above = np.searchsorted(under, upper, "right").sum()
    return float((below + not_above) / (2 * upper.size * under.size))


def judge(
    level: str,
    model: str,
    scores: Mapping[str, float],
    quality: Mapping[str, str],
    selected: Iterable[str] | None = None,
    share: float = 0.2,
) -> Verdict:
    """Judge one score; `selected` are the ids that were kept, by default the top `share`.

    Raises
    ------
    KeyError
        If a scored record has no known quality.
    ValueError
        If there are no right or no other records among the scored.
    """
    right = [score for key, score in scores.items() if quality[key] == "right"]
    wrong = [score for key, score in scores.items() if quality[key] == "wrong"]
    rest = [score for key, score in scores.items() if quality[key] != "right"]
    kept = top_share(scores, share) if selected is None else list(selected)
    counts = Counter(quality[key] for key in kept)
    return Verdict(
        level,
        model,
        area_under_curve(right, wrong),
        area_under_curve(right, rest),
        dict(sorted(counts.items())),
    )


def top_share(scores: Mapping[str, float], share: float) -> list[str]:
    """Return the ids of the best `share` of the records, best first; ties go to the lower id."""
    count = max(1, int(share * len(scores)))
    return sorted(scores, key=lambda key: (-scores[key], key))[:count]


def judge_levels(
    token_scores: Mapping[str, Mapping[str, np.ndarray]],
    sentence_scores: Mapping[str, Mapping[str, float]],
    fused: Mapping[str, float],
    quality: Mapping[str, str],
    share: float = 0.2,
) -> list[Verdict]:
    """Judge token, sentence and model level, so that one sees what each adds.

    Parameters
    ----------
    token_scores
        Per model and record id the token-level scores of the K rating prompts, (K,) float. The
        token level is judged by the first prompt alone: it is what one prompt gives.
    sentence_scores
        Per model and record id the sentence-level score.
    fused
        Per record id the model-level score.
    quality
        Per record id the known quality.
    share
        The share of the records that is selected.
    """
    verdicts = [
        judge("token", model, {key: float(s[0]) for key, s in scores.items()}, quality, share=share)
        for model, scores in token_scores.items()
    ]
    verdicts += [
        judge("sentence", model, scores, quality, share=share)
        for model, scores in sentence_scores.items()
    ]
    return [*verdicts, judge("model", "fused", fused, quality, share=share)]


def judge_folder(folder: Path, quality: Mapping[str, str], share: float = 0.2) -> list[Verdict]:
    """Judge the stored scores and the ranking that a run left in its experiment folder.

    Parameters
    ----------
    folder
        Holds ``scores/<model>/*.parquet`` and ``ranking/ranking.parquet``.
    quality
        Per record id the known quality.
    share
        The share of the records that is selected.
    """
    ranking = pq.read_table(folder / "ranking" / "ranking.parquet").to_pylist()
    ranked = [row for row in ranking if row["rank"] is not None]
    fused = {row["record_id"]: row["score"] for row in ranked}
    token: dict[str, dict[str, np.ndarray]] = {}
    sentence: dict[str, dict[str, float]] = {}
    for model in sorted({name for row in ranked for name, _ in row["sentence_score"]}):
        token[model] = _token_scores(folder / "scores" / model)
        sentence[model] = {row["record_id"]: dict(row["sentence_score"])[model] for row in ranked}
    return judge_levels(token, sentence, fused, quality, share)


def _token_scores(folder: Path) -> dict[str, np.ndarray]:
    """Return the token-level score of the first rating prompt, by record id, each (1,) float."""
    rows = pa.concat_tables(pq.read_table(file) for file in sorted(folder.glob("*.parquet")))
    first = rows.filter(pc.and_(pc.equal(rows["prompt_index"], 0), pc.equal(rows["status"], "ok")))
    distributions = np.array(first["probabilities"].to_pylist())
    return dict(
        zip(first["record_id"].to_pylist(), token_level(distributions)[:, None], strict=True)
    )


def table(verdicts: Iterable[Verdict]) -> str:
    """Return the verdicts as a Markdown table."""
    lines = [
        "| level | model | area, right : wrong | area, right : rest | right among selected |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {v.level} | {v.model} | {v.right_against_wrong:.3f} | {v.right_against_rest:.3f} "
        f"| {100 * v.share_right:.1f} % |"
        for v in verdicts
    ]
    return "\n".join(lines) + "\n"
