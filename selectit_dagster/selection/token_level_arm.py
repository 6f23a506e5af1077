"""One model's token-level scores under the first rating prompt, for the ablation arm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.rating.score_reader import StoredScores
from selectit_dagster.selection.fusion import write_sentence_scores
from selectit_dagster.selection.ranking import RankingRequest

if TYPE_CHECKING:
    from selectit_dagster.selection.arms import ArmContext


def token_level_scores(context: ArmContext, name: str) -> Path:
    """Write (record_id, score) of one model and return the file.

    The sentence level over a single prompt is the token level itself: its mean is the one
    value, its standard deviation 0.
    """
    folder = dict(context.scores)[name]
    stored = context.ranked_with["parameters"]
    request = RankingRequest(records=context.records.parent, scores=((name, folder),), **stored)
    request = replace(request, num_prompts=1)
    store = StoredScores(name, folder, 1, request.num_ratings)
    target = context.work.folder / "token-level.parquet"
    write_sentence_scores(store, request, target, context.work)
    return target
