"""S-IFD: IFD over the tokens that the instruction changes."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, register
from selectit_dagster.selection.arms.ifd import UpToOne
from selectit_dagster.selection.arms.response_arm import Floats, token_rows


@register("s-ifd")
class SelectiveIFD(UpToOne):
    """exp(mean of d_t with abs(d_t) > τ), d_t = c_t - u_t (T-SHIRT, arXiv 2506.01317).

    τ is a percentile of abs(d_t) over all tokens of the set. A record without such a token
    has no score.
    """

    title = "the highest S-IFD up to 1"
    phrase = "the S-IFD {part}"
    percentile: float = Field(75.0, ge=0, lt=100, description="τ as a percentile: 50 or 75")

    def scores(self, context: ArmContext) -> tuple[str, str]:
        """Return S-IFD with τ of all tokens."""
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

        means = f"S-IFD over the tokens whose loss changes by more than {threshold:.4g}"
        return f"SELECT * FROM {self.per_record(context, passes, score)}", means
