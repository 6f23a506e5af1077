"""Arms that run a model over the responses: losses, entropies, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from selectit_dagster.artefacts.duckdb_tables import stored_batches
from selectit_dagster.experiment.rating_section import ModelReference
from selectit_dagster.experiment.section import Name
from selectit_dagster.selection.arms.arm import ArmContext, Need, ScoredArm

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]


class ResponseArm(ScoredArm):
    """Base of the arms that run a model over all records; those that fit into it are scored."""

    needs: ClassVar[tuple[Need, ...]] = ("model",)
    model: Name | ModelReference | None = Field(
        None, description="a scoring model's name, or {path: ...}; default: the last scoring model"
    )

    def per_record(
        self, context: ArmContext, passes: list[tuple[Path, str]], score: Callable[..., Any]
    ) -> str:
        """Return the table of the score of each record from its token columns in some passes.

        ``passes`` are (file, column), all in the order of the records; ``score`` takes a
        (T,) array per pass and returns a number, NaN where there is none.
        """
        return context.stored(self.kind, _scored(passes, score))


def _scored(passes: list[tuple[Path, str]], score: Callable[..., Any]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for ids, rows in token_rows(passes):
        found = [
            np.nan if any(part is None for part in row) else float(score(*row)) for row in rows
        ]
        scores = pa.array(found, pa.float64(), from_pandas=True)
        yield pa.record_batch({"record_id": ids, "score": scores})


def token_rows(passes: list[tuple[Path, str]]) -> Iterator[tuple[Any, list[tuple[Any, ...]]]]:
    """Yield ids and, per record, its (T,) array of each pass, None where it has none."""
    streams = [stored_batches(path, ["record_id", column], 1024) for path, column in passes]
    for batches in zip(*streams, strict=True):
        columns = [_arrays(batch.column(1)) for batch in batches]
        yield batches[0].column(0), list(zip(*columns, strict=True))


def _arrays(column: Any) -> list[Floats | None]:  # noqa: ANN401 - an Arrow list array
    values = column.flatten().to_numpy().astype(np.float64)
    ends = np.cumsum([len(row) if row.is_valid else 0 for row in column])
    return [
        values[end - len(row) : end] if row.is_valid else None
        for end, row in zip(ends.tolist(), column, strict=True)
    ]
