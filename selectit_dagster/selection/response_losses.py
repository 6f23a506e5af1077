"""Losses of all candidates' responses under one model, in chunks that survive a kill."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.duckdb_tables import ParquetStream
from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.inference.response_pass import Forward

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.selection.arms import ArmContext

_CHUNK = 1024


def likelihoods(context: ArmContext, *, direct: bool) -> Path:
    """Compute each candidate's losses and return the Parquet file that holds them.

    Columns: ``record_id``; ``conditioned``, the mean negative log-likelihood of the
    response's tokens given the instruction, in nats; ``direct``, the same without the
    instruction (null unless asked for). A loss is null where the record does not fit into
    the model's context or has no response token. Chunks that a killed run finished are kept
    in the context's cache and used again.

    Raises
    ------
    UserError
        When the model cannot be loaded.
    """
    total = int(str(context.work.row(f"SELECT count(*) FROM {context.candidates}")[0]))
    target = context.work.folder / "likelihood.parquet"
    forward: Forward | None = None
    with ParquetStream(target, compression="lz4") as stream:
        for number, texts in enumerate(texts_of(context, "record_id")):
            path = context.cache / f"chunk-{number:06d}.parquet"
            found = _kept(path, texts)
            if found is None:
                # loaded only when something is left to do
                forward = forward or load_forward(context)
                found = _losses(forward, texts, direct)
                write_parquet(path, found)
            for batch in found.to_batches():
                stream.write(batch)
            context.progress.update(stream.rows, total)
    return target


def load_forward(context: ArmContext) -> Forward:
    """Load the arm's model."""
    from selectit_dagster.inference.model_loading import load_model

    if context.model is None:
        raise ValueError("this arm has no model")
    return Forward(load_model(context.model))


def texts_of(context: ArmContext, order: str, rows: int = _CHUNK) -> Iterator[pa.Table]:
    """Yield the candidates' ids, scores and texts in chunks of ``rows``, in a total order."""
    import pyarrow as pa

    query = (
        "SELECT record_id, score, instruction, input, response "
        f"FROM {context.candidates} c JOIN (SELECT record_id, instruction, input, response "
        f"FROM {context.work.table(context.records)}) USING (record_id) ORDER BY {order}"
    )
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in context.work.batches(query, rows):
        rest = batch
        while rest.num_rows:
            head = rest.slice(0, rows - count)
            held.append(head)
            count += head.num_rows
            rest = rest.slice(head.num_rows)
            if count == rows:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _kept(path: Path, texts: pa.Table) -> pa.Table | None:
    """Return a finished chunk when it is of exactly these records."""
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    stored = pq.read_table(path)
    same = stored.column("record_id").to_pylist() == texts.column("record_id").to_pylist()
    return stored if same else None


def _losses(forward: Forward, texts: pa.Table, direct: bool) -> pa.Table:
    import pyarrow as pa

    columns = [texts.column(c).to_pylist() for c in ("instruction", "input", "response")]
    records = list(zip(*columns, strict=True))
    conditioned = forward.losses([forward.conditioned(i, more, r) for i, more, r in records])
    alone = None
    if direct:
        alone = forward.losses([forward.direct(response) for *_, response in records])
    empty = pa.nulls(len(records), pa.float64())
    return pa.table(
        {
            "record_id": texts.column("record_id"),
            "conditioned": pa.array(conditioned, pa.float64(), from_pandas=True),
            "direct": empty if alone is None else pa.array(alone, from_pandas=True),
        }
    )
