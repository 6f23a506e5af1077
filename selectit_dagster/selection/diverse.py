"""SelectIT's order with near neighbours skipped.

Going down the ranking, a record is taken unless its embedding is too like that of a record
taken before (the rule of Deita's repr filter, Liu et al. 2024, arXiv 2312.15685, on
SelectIT's order). Only as much of the ranking is embedded as is needed for the count.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import ParquetStream
from selectit_dagster.selection.response_losses import load_forward, texts_of

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.inference.response_pass import Forward
    from selectit_dagster.selection.arms import ArmContext

SIMILARITY = 0.9
_CHUNK = 256
Matrix = npt.NDArray[np.float32]


class Taken:
    """The embeddings of the records taken so far; memory grows with the number taken.

    ``centre`` is subtracted first: the mean hidden states of a causal model share one
    dominating direction, beside which all records look alike.
    """

    def __init__(self, centre: Matrix, similarity: float = SIMILARITY) -> None:
        self.centre = centre
        self.similarity = similarity
        self._blocks: list[Matrix] = []
        self._fresh: list[Matrix] = []

    def offer(self, embeddings: Matrix, limit: int) -> npt.NDArray[np.bool_]:
        """Take records in order until ``limit`` are taken.

        Parameters
        ----------
        embeddings:
            (n, width), in the order of the ranking.

        Returns
        -------
        numpy.ndarray
            (n,) which were taken.
        """
        unit = normalised(embeddings - self.centre)
        alike = np.zeros(len(unit), dtype=bool)
        for block in self._blocks:
            alike |= (unit @ block.T).max(axis=1) > self.similarity
        among = unit @ unit.T > self.similarity
        taken = np.zeros(len(unit), dtype=bool)
        for index in range(len(unit)):
            if int(taken.sum()) == limit:
                break
            taken[index] = not alike[index] and not (among[index] & taken).any()
        if taken.any():
            self._add(unit[taken])
        return taken

    def _add(self, rows: Matrix) -> None:
        self._fresh.append(rows)
        joined = np.concatenate(self._fresh)
        if len(self._fresh) > 1:
            self._blocks.pop()
        self._blocks.append(joined)
        self._fresh = [joined] if len(joined) < 4096 else []


def normalised(rows: Matrix) -> Matrix:
    """Return the rows at unit length; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


def pick_diverse(context: ArmContext) -> tuple[Path, list[str]]:
    """Write (record_id, score, place) of the chosen records; return the file and notes.

    When the ranking ends before enough records are taken, the skipped ones follow in their
    order, and a note says how many.
    """
    import pyarrow as pa

    forward = load_forward(context)
    picks: list[pa.Table] = []
    skipped: list[pa.Table] = []
    taken: Taken | None = None
    found = offered = 0
    for texts in texts_of(context, "rank", _CHUNK):
        embeddings = _embed(forward, texts)
        if taken is None:
            # the centre of the best chunk: it depends on the ranking alone
            taken = Taken(embeddings.mean(axis=0, keepdims=True))
        mask = taken.offer(embeddings, context.count - found)
        found += int(mask.sum())
        ended = found == context.count
        offered += int(np.flatnonzero(mask)[-1]) + 1 if ended else len(mask)
        names = texts.select(["record_id", "score"])
        picks.append(names.filter(pa.array(mask)))
        skipped.append(names.filter(pa.array(~mask)))
        context.progress.update(found, context.count, embedded=float(offered))
        if ended:
            break
    notes = [f"{offered - found:,} near neighbours (cosine above {SIMILARITY:g}) were skipped"]
    if found < context.count:
        notes.append(
            f"only {found:,} records are no near neighbours; the best {context.count - found:,} "
            "of the skipped ones fill the selection up"
        )
    return _write(context, pa.concat_tables([*picks, *skipped])), notes


def _embed(forward: Forward, texts: pa.Table) -> Matrix:
    columns = [texts.column(name).to_pylist() for name in ("instruction", "input", "response")]
    rows = [forward.conditioned(*record) for record in zip(*columns, strict=True)]
    return forward.embeddings(rows)


def _write(context: ArmContext, ordered: pa.Table) -> Path:
    import pyarrow as pa

    target = context.work.folder / "diverse.parquet"
    places = pa.array(np.arange(ordered.num_rows))
    with ParquetStream(target, compression="lz4") as stream:
        for batch in ordered.append_column("place", places).combine_chunks().to_batches():
            stream.write(batch)
    return target
