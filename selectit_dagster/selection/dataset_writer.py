"""The selected dataset: the records as they were read, best first, and one Parquet file.

Two files come from one pass over the chosen records: ``data.*`` in the format of the source
with every record byte for byte, and ``dataset.parquet`` with the columns that training and
``datasets.load_dataset`` want. Rows of a typed source (Parquet, a saved dataset, the hub)
have no bytes of their own; their typed values are taken from the source again.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import orjson

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, Workspace
from selectit_dagster.errors import ArtefactError
from selectit_dagster.progress import Progress
from selectit_dagster.selection.external_sort import RANK, ByRank, chosen_rows, row_bytes

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.data.arrow_reader import TypedReader
    from selectit_dagster.selection.choose import Choice

DATASET_FILE = "dataset.parquet"
_TYPED = ("parquet", "datasets", "hub")
_CHECKED_ROWS = 500
_MADE_AGAIN = "materialise curated_dataset and ranking again"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes
    ----------
    names:
        File names in the folder.
    characters:
        Sum of the responses' lengths in characters.
    content:
        SHA-256 over record id, instruction, input, response and, where there are any, weights
        in order: what training depends on. It does not change when only scores do.
    """

    names: list[str]
    characters: int
    content: str


class TextWriter:
    """Writes records' bytes as a JSON array, JSON Lines or CSV, compressed as the source was.

    Nothing of ours goes between the records but what the format needs.
    """

    def __init__(self, path: Path, source: dict[str, Any]) -> None:
        self._stack = ExitStack()
        raw = self._stack.enter_context(path.open("wb"))
        self._handle = self._compressed(raw, str(source.get("compression", "none")))
        kind = source["format"]
        shape = source.get("csv") or {}
        header = str(shape.get("header", "")).encode("utf-8", "surrogateescape")
        header = b"\xef\xbb\xbf" * bool(shape.get("byte_order_mark")) + header
        ending = str(shape.get("line_ending", "\n")).encode()
        opening, self._between, self._closing = {
            "json": (b"[\n", b",\n", b"\n]\n"),
            "jsonl": (b"", b"\n", b"\n"),
            "csv": (header + ending, ending, ending),
        }[kind]
        self._first = True
        self._handle.write(opening)

    def _compressed(self, raw: IO[bytes], compression: str) -> IO[bytes]:
        if compression == "gzip":
            # no time and no name in the header: equal content gives equal bytes
            packed = gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0, filename="")
            return cast(IO[bytes], self._stack.enter_context(packed))
        if compression == "zstd":
            import zstandard

            stream = zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)
            return cast(IO[bytes], self._stack.enter_context(stream))
        return self._stack.enter_context(io.BufferedWriter(cast(io.RawIOBase, raw)))

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the records of a batch (column ``raw``)."""
        if not self._first:
            self._handle.write(self._between)
        self._first = False
        self._handle.write(self._between.join(batch.column("raw").to_pylist()))

    def close(self) -> None:
        """Write the end and close."""
        self._handle.write(self._closing)
        self._stack.close()


class TypedWriter:
    """Writes the source's typed rows to Parquet, in its own schema.

    The source is read again, once, when all chosen rows are known.

    Raises
    ------
    ArtefactError
        When the source's rows are no longer those that were read.
    """

    def __init__(self, path: Path, source: dict[str, Any], count: int, folder: Path) -> None:
        self._path = path
        self._source = source
        self._count = count
        self._folder = folder
        self._positions: list[npt.NDArray[np.int64]] = []
        self._samples: dict[int, bytes] = {}
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Remember the positions of the next rows, and of some of them what they were."""
        positions = batch.column("position").to_numpy()
        step = max(1, self._count // _CHECKED_ROWS)
        for index in range(-self._rows % step, len(positions), step):
            self._samples[int(positions[index])] = batch.column("raw")[index].as_py()
        self._positions.append(positions)
        self._rows += len(positions)

    def close(self) -> None:
        """Take the rows from the source and write them."""
        import pyarrow as pa

        from selectit_dagster.data.arrow_reader import open_typed, rows_at
        from selectit_dagster.experiment import DatasetSection

        section = DatasetSection.model_validate(
            {name: self._source.get(name) for name in ("path", "split", "config")}
        )
        reader = open_typed(section, self._source["format"], self._source.get("revision"))
        positions = np.concatenate(self._positions or [np.zeros(0, np.int64)])
        order = np.argsort(positions)
        ascending = positions[order]
        sorted_rows: ByRank | None = None
        done = 0
        for batch in rows_at(reader, ascending, section.path):
            part = slice(done, done + batch.num_rows)
            done = part.stop
            self._check(reader, batch, ascending[part])
            if sorted_rows is None:
                size = batch.nbytes / batch.num_rows
                sorted_rows = ByRank(self._folder, self._count, size)
            ranks = pa.array((order[part] + 1).astype(np.int32))
            names = [*batch.schema.names, RANK]
            sorted_rows.add(pa.record_batch([*batch.columns, ranks], names=names))
        with ParquetStream(self._path, schema=reader.schema, dictionary=True) as stream:
            for batch in sorted_rows.batches() if sorted_rows else ():
                kept = batch.columns[:-1]
                stream.write(pa.record_batch(kept, schema=reader.schema))

    def _check(
        self, reader: TypedReader, batch: pa.RecordBatch, positions: npt.NDArray[np.int64]
    ) -> None:
        """Make sure that the source, read again perhaps much later, did not change."""
        from selectit_dagster.data.arrow_reader import canonical_json

        for index, position in enumerate(positions.tolist()):
            raw = self._samples.get(position)
            if raw is not None and canonical_json(reader.rows(batch.slice(index, 1))[0]) != raw:
                raise ArtefactError(
                    f"{self._source['path']} is not what it was when it was read",
                    hint="materialise raw_dataset again",
                )


def data_name(source: dict[str, Any]) -> str:
    """Return the name of the file in the source's format: ``data.jsonl.gz``."""
    if source["format"] in _TYPED:
        return "data.parquet"
    packed = {"gzip": ".gz", "zstd": ".zst"}.get(str(source.get("compression")), "")
    return f"data.{source['format']}{packed}"


def dataset_schema(*, weighted: bool = False) -> pa.Schema:
    """Return the schema of ``dataset.parquet``; ``length`` is the response's in characters."""
    import pyarrow as pa

    return pa.schema(
        [
            ("record_id", pa.string()),
            ("instruction", pa.string()),
            ("input", pa.string()),
            ("response", pa.string()),
            ("rank", pa.int32()),
            ("score", pa.float64()),
            ("length", pa.int32()),
            *([("weight", pa.float64())] if weighted else []),
        ]
    )


def write_selected(
    records: Path,
    choice: Choice,
    source: dict[str, Any],
    work: Workspace,
    progress: Progress,
) -> Written:
    """Write ``data.*`` and ``dataset.parquet`` into the workspace's folder.

    Parameters
    ----------
    records:
        ``records.parquet`` of the curated dataset.
    choice:
        What was chosen; its ``count`` is checked.
    source:
        What the manifest of the curated dataset says about the source's format.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    count = choice.count
    columns = ["record_id", "position", "instruction", "input", "response", "raw"]
    by_rank = ByRank(work.folder, count, row_bytes(records))
    for batch in chosen_rows(records, choice.table, columns, work):
        by_rank.add(batch)
    schema, name = dataset_schema(weighted=choice.weighted), data_name(source)
    path = work.folder / name
    typed = source["format"] in _TYPED
    data = TypedWriter(path, source, count, work.folder) if typed else TextWriter(path, source)
    content, characters = hashlib.sha256(), 0
    with ParquetStream(work.folder / DATASET_FILE, schema=schema) as dataset:
        for batch in _checked(by_rank.batches(), records):
            data.write(batch)
            length = pc.utf8_length(batch.column("response")).cast(pa.int32())
            batch = batch.append_column("length", length).select(schema.names).cast(schema)
            dataset.write(batch)
            # weights are trained on; without them the texts alone count
            texts = [batch.column(n).to_pylist() for n in (*schema.names[:4], *schema.names[7:])]
            for row in zip(*texts, strict=True):
                content.update(orjson.dumps(row))
            characters += pc.sum(length).as_py() or 0
            progress.update(dataset.rows, count)
    data.close()
    if dataset.rows != count:
        raise ArtefactError(
            f"{count:,} records were chosen but {dataset.rows:,} of them are in {records}",
            hint=_MADE_AGAIN,
        )
    return Written([name, DATASET_FILE], characters, content.hexdigest())


def _checked(batches: Iterator[pa.RecordBatch], records: Path) -> Iterator[pa.RecordBatch]:
    """Pass batches on, checking that ranks count 1, 2, 3, ... without gap."""
    expected = 1
    for batch in batches:
        ranks = batch.column("rank").to_numpy()
        wrong = ranks != np.arange(expected, expected + len(ranks))
        if wrong.any():
            raise ArtefactError(
                f"of the chosen records, the one of rank {expected + int(wrong.argmax())} is not "
                f"in {records}, or the one before it is there twice",
                hint=_MADE_AGAIN,
            )
        expected += batch.num_rows
        yield batch
