"""k-center, facility location and DPP on embeddings alone."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, Ordering, register
from selectit_dagster.selection.arms.response_arm import ResponseArm
from selectit_dagster.selection.diversity import (
    METHODS,
    candidate_rows,
    centred,
    pool_of,
    written_order,
)


class Coverage(ResponseArm):
    """Base of the greedy rules on the embeddings of the records, without any score.

    ``diversity: {method: ...}`` applies the same rules to the score of any other arm.
    """

    needs = ("model", "embeddings")
    pool: int = Field(20_000, ge=1, description="candidates that are looked at, a seeded draw")
    seed: int = Field(1, ge=0, description="seed of the draw of the pool")

    def arrange(self, context: ArmContext) -> Ordering:
        """Order as the greedy rule takes the records."""
        path, embeddings = context.passes.embeddings()
        ids, _, places = candidate_rows(context, path)
        count = context.count or len(ids)
        kept, notes = pool_of(ids, max(count, self.pool), self.seed)
        rule = METHODS[self.kind]
        found = rule(centred(embeddings[places[kept]]), np.ones(len(kept)), min(count, len(kept)))
        query = written_order(context, [ids[kept[i]] for i in found], None)
        means = "none: the order is that of the greedy choice"
        return Ordering(query, means, notes, higher_is_better=None)


@register("k-center")
class KCenter(Coverage):
    """Greedy k-center: the record farthest from all that are taken (Sener and Savarese 2018)."""

    title = "records that lie far from each other (k-center)"


@register("facility-location")
class FacilityLocation(Coverage):
    """Greedy facility location: the record that raises the sum of best similarities most."""

    title = "records that stand for all others (facility location)"


@register("dpp")
class DeterminantalPointProcess(Coverage):
    """Greedy MAP of a determinantal point process on cosines (Chen et al. 2018)."""

    title = "a diverse set by a determinantal point process"
    phrase = "the DPP {part}"
