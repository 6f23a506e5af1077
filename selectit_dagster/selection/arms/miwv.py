"""MIWV: whether a solved neighbour makes a response easier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.selection.arms.arm import ArmContext, register
from selectit_dagster.selection.arms.response_arm import ResponseArm
from selectit_dagster.selection.diversity import Matrix, normalised

_BLOCK = 1024


@register("miwv")
class ModelInstructionWeakness(ResponseArm):
    """MIWV = L(y given x and C) - L(y given x), the highest first (arXiv 2511.07074, eq. 1 to 8).

    C is the nearest other record, solved, by the cosine of mean-pooled embeddings.
    """

    title = "the records that a solved neighbour makes least easier"
    phrase = "the MIWV {part}"
    needs = ("model", "embeddings")

    def scores(self, context: ArmContext) -> tuple[str, str]:
        """Return the change of the mean loss."""
        path, embeddings = context.passes.embeddings()
        made_from = require_manifest(path.parent, made_by="the embeddings").digest
        after = context.passes.losses_after(nearest_others(embeddings), made_from)
        given = context.work.table(context.passes.losses())
        query = (
            "SELECT record_id, list_avg(e.losses) - list_avg(g.losses) AS score "
            f"FROM {context.work.table(after)} e JOIN {given} g USING (record_id)"
        )
        return query, "loss after one solved neighbour minus loss without it"


def nearest_others(embeddings: Matrix) -> npt.NDArray[np.int64]:
    """Return (N,) the index of each row's nearest other row by cosine; of equals the first."""
    unit = normalised(embeddings)
    found = np.zeros(len(unit), np.int64)
    for start in range(0, len(unit), _BLOCK):
        alike = unit[start : start + _BLOCK] @ unit.T
        own = np.arange(len(alike))
        alike[own, start + own] = -np.inf
        found[start : start + _BLOCK] = alike.argmax(axis=1)
    return found
