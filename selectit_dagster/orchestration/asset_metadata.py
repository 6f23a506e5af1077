"""From a manifest and its files to what Dagster shows on an asset's page."""

from __future__ import annotations

import base64
import json
from itertools import islice
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.display import one_line

_CELL = 160
_MAX_PNG = 74_000  # base64 makes it a third larger; pages stay under 100 kB per picture
Metadata = dict[str, Any]
_MEANINGS = {
    "record_id": "the record's own id, else a hash of its content",
    "position": "place in the source, from 0",
    "instruction": "what was asked",
    "input": "further input to the instruction",
    "response": "the answer that is rated",
    "raw": "the record byte for byte as it was read",
    "prompt_index": "rating prompt, from 0",
    "probabilities": "of the ratings 1 to R, given that the answer is a rating",
    "rating_mass": "probability of all rating tokens together, in the full vocabulary",
    "status": "ok, too_long or failed",
    "reason": "why there is no score",
    "rank": "1 is best; null where the record was not ranked",
    "score": "model level of SelectIT; in an evaluation, the question's score",
    "sentence_score": "sentence level of SelectIT, per model",
    "question_id": "the question within its benchmark",
}


def tables(**named: list[dict[str, Any]] | None) -> Metadata:
    """Return lists of rows as Dagster's tables by name, without the empty ones."""
    return {name: _table(rows) for name, rows in named.items() if rows}


def _table(rows: list[dict[str, Any]]) -> dg.TableMetadataValue:
    names = list(rows[0])
    schema = dg.TableSchema([dg.TableColumn(name, "string") for name in names])
    records = [dg.TableRecord({n: one_line(row.get(n, ""), _CELL) for n in names}) for row in rows]
    return dg.MetadataValue.table(records, schema=schema)


def column_schema(path: Path) -> dg.TableSchema:
    """Return the schema of a Parquet file."""
    import pyarrow.parquet as pq

    return dg.TableSchema(
        [
            dg.TableColumn(
                field.name,
                str(field.type),
                description=_MEANINGS.get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in pq.read_schema(path)
        ]
    )


def preview(path: Path, columns: list[str] | None = None, rows: int = 5) -> list[dict[str, Any]]:
    """Return the first rows of a Parquet file, without reading more than a batch of it."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = [n for n in (columns or file.schema_arrow.names) if n in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=rows, columns=names):
            return [dict(row) for row in batch.to_pylist()]
    return []


def picture(png: bytes, title: str, address: str | None = None) -> dg.MarkdownMetadataValue:
    """Return a PNG as Markdown: by its address in MLflow, or else with the picture inside it.

    Dagster shows Markdown of less than 1,000 characters on the page itself, so only a picture with
    an address stands there at once. One that is too large to be inside is named.
    """
    if address is not None:
        return dg.MetadataValue.md(f"![{title}: shown while MLflow's page is served]({address})")
    if len(png) > _MAX_PNG:
        return dg.MetadataValue.md(f"*{title}: the picture is in the artefact's folder*")
    data = base64.b64encode(png).decode("ascii")
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{data})")


def row_count(path: Path) -> int:
    """Return how many rows a Parquet file holds."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def first_lines(path: Path, count: int = 10) -> list[dict[str, Any]]:
    """Return the first objects of a JSON Lines file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as handle:
        return [json.loads(line) for line in islice(handle, count)]


def spread_lines(path: Path, most: int) -> list[dict[str, Any]]:
    """Return at most ``most`` objects of a JSON Lines file, evenly over it, first and last too."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        count = sum(1 for _ in handle)
    wanted = {round(index * (count - 1) / (most - 1)) for index in range(most)}
    wanted = wanted if count > most else set(range(count))
    with path.open(encoding="utf-8", errors="replace") as handle:
        return [json.loads(line) for number, line in enumerate(handle) if number in wanted]


def base_metadata(
    manifest: Manifest, folder: Path, data_file: str | None, address: str | None = None
) -> Metadata:
    """Return what every asset shows: counts, place, time, row count, schema and preview.

    ``address`` is where the artefact is published; without one its place is ``folder``.
    """
    here = dg.MetadataValue.path(str(folder))
    shown: Metadata = {
        "counts": dg.MetadataValue.table(
            [dg.TableRecord({"what": k, "count": v}) for k, v in manifest.counts.items()],
            schema=dg.TableSchema([dg.TableColumn("what"), dg.TableColumn("count", "int")]),
        ),
        **(
            {"dagster/uri": dg.MetadataValue.text(address), "local_copy": here}
            if address
            else {"dagster/uri": here}
        ),
        "made_in_seconds": manifest.seconds,
        "made_at": manifest.created_at,
    }
    if data_file is not None and (files := sorted(folder.glob(data_file))):
        shown["dagster/row_count"] = sum(map(row_count, files))
        shown["dagster/column_schema"] = column_schema(files[0])
        shown |= tables(preview=preview(files[0]))
    return shown


def lineage(columns: dict[str, list[tuple[dg.AssetKey, str]]]) -> dg.TableColumnLineage:
    """Return column lineage: each of our columns from (asset, column) pairs."""
    return dg.TableColumnLineage(
        {ours: [dg.TableColumnDep(*dep) for dep in deps] for ours, deps in columns.items()}
    )
