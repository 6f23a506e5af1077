"""HES: the sum of the highest token entropies."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, register
from selectit_dagster.selection.arms.response_arm import Floats, ResponseArm


@register("hes")
class HighEntropySum(ResponseArm):
    """Sum of the token entropies above the answer's own 99.5th percentile (arXiv 2605.22389).

    The entropies are of the whole next-token distribution, in nats.
    """

    title = "the highest sum of high token entropies"
    phrase = "the HES {part}"
    percentile: float = Field(99.5, gt=0, lt=100, description="above which entropies are summed")

    def scores(self, context: ArmContext) -> tuple[str, str]:
        """Return the sum of the answer's high entropies."""

        def score(entropies: Floats) -> float:
            return float(entropies[entropies > np.percentile(entropies, self.percentile)].sum())

        table = self.per_record(context, [(context.passes.losses(), "entropies")], score)
        means = "sum of the token entropies above the answer's own percentile, in nats"
        return f"SELECT * FROM {table}", means
