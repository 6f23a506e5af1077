"""RDS+: the records nearest to a set of queries, each query in its turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.experiment.section import Line
from selectit_dagster.selection.arms.arm import ArmContext, Ordering, register
from selectit_dagster.selection.arms.response_arm import ResponseArm
from selectit_dagster.selection.diversity import (
    Matrix,
    candidate_rows,
    normalised,
    written_order,
)


@register("rds")
class RepresentationSimilarity(ResponseArm):
    """RDS+ (arXiv 2503.01807): cosine of position-weighted mean hidden states to a query set.

    Weights are t over the sum of 1 to T. In rounds each query takes the nearest record that
    is not taken yet.
    """

    title = "the records nearest to a query set, each query in its turn"
    phrase = "the RDS+ {part}"
    needs = ("model", "embeddings", "query set")
    file: Line = Field(description="the queries: a dataset file of the target task")

    def identity(self) -> dict[str, Any]:
        """Return the settings with the queries' content in place of their path."""
        return {**self.settings(), "file": sha256_file(Path(self.file))}

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by round robin over the queries."""
        path, embeddings = context.passes.embeddings(weighted=True)
        ids, _, places = candidate_rows(context, path)
        count = context.count or len(ids)
        taken, scores = round_robin(embeddings[places], self._queries(context), count)
        query = written_order(context, [ids[i] for i in taken], scores)
        return Ordering(query, "cosine to the query that took the record", higher_is_better=None)

    def _queries(self, context: ArmContext) -> Matrix:
        import pyarrow.parquet as pq

        from selectit_dagster.data.ingest import IngestRequest, ingest
        from selectit_dagster.experiment import DatasetSection
        from selectit_dagster.progress import Silent

        folder = context.work.folder / "queries"
        ingest(IngestRequest(DatasetSection(path=self.file)), folder, Silent())
        names = ["instruction", "input", "response"]
        table = pq.read_table(folder / "records.parquet", columns=names)
        texts = zip(*(table.column(name).to_pylist() for name in names), strict=True)
        forward = context.passes.forward
        return forward.embeddings([forward.conditioned(*row) for row in texts], weighted=True)


def round_robin(
    embeddings: Matrix, queries: Matrix, count: int
) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Return the indices of ``count`` rows in the order in which the queries take them.

    Also returned: the cosine of each to the query that took it. Of equals the first row goes
    first.
    """
    alike = normalised(queries) @ normalised(embeddings).T
    orders = np.argsort(-alike, axis=1, kind="stable")
    at = [0] * len(orders)
    free = np.ones(alike.shape[1], dtype=bool)
    taken: list[int] = []
    scores: list[float] = []
    while len(taken) < min(count, alike.shape[1]):
        for query, order in enumerate(orders):
            while at[query] < len(order) and not free[order[at[query]]]:
                at[query] += 1
            if at[query] == len(order) or len(taken) == count:
                break
            free[order[at[query]]] = False
            taken.append(int(order[at[query]]))
            scores.append(float(alike[query, taken[-1]]))
    return taken, np.array(scores)
