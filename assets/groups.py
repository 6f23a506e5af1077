"""Names that all assets share: groups in pipeline order, owners' tags, retry rules."""

from __future__ import annotations

DATA = "g1_data"
RATING = "g2_rating"
SELECTION = "g3_selection"
TUNING = "g4_tuning"
EVALUATION = "g5_evaluation"
COMPARISON = "g6_comparison"

# one model in memory at a time: steps of this pool wait for one another
MODEL_POOL = "model_memory"
