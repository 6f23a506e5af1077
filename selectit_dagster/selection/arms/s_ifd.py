"""S-IFD: IFD over the tokens that the instruction changes."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, Ordering, register
from selectit_dagster.selection.arms.ifd import BELOW_ONE_FIRST, beyond_one
from selectit_dagster.selection.arms.response_arm import Floats, ResponseArm, token_rows


@register("s-ifd")
class SelectiveIFD(ResponseArm):
    """exp(mean of d_t with abs(d_t) > τ), d_t = c_t - u_t (T-SHIRT, arXiv 2506.01317).

    τ is a percentile of abs(d_t) over all tokens of the set. A record without such a token
    has no score.
    """

    title: ClassVar[str] = "the highest S-IFD up to 1"
    phrase: ClassVar[str] = "the S-IFD {part}"
    percentile: float = Field(75.0, ge=0, lt=100, description="τ as a percentile: 50 or 75")

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by S-IFD, from 1 downwards."""
        passes = [(context.passes.losses(), "losses"), (context.passes.losses_alone(), "losses")]
        changes = [
            np.abs(given - alone).astype(np.float32)
            for _, rows in token_rows(passes)
            for given, alone in rows
            if given is not None and alone is not None
        ]
        every = np.concatenate(changes or [np.zeros(1, np.float32)])
        threshold = float(np.percentile(every, self.percentile))

        def score(given: Floats, alone: Floats) -> float:
            d = given - alone
            kept = d[np.abs(d).astype(np.float32) > np.float32(threshold)]
            return float(np.exp(kept.mean())) if kept.size else float("nan")

        query = f"SELECT * FROM {self.per_record(context, passes, score)}"
        return self.by_score(
            context,
            query,
            f"S-IFD over the tokens whose loss changes by more than {threshold:.4g}",
            order=BELOW_ONE_FIRST,
            higher_is_better=None,
            notes=beyond_one(context, query),
        )
