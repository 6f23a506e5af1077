"""The selected dataset: the records as they were read, best first, and one Parquet file.

Two files come from one pass over the chosen records: ``data.*`` in the format of the source
with every record byte for byte, and ``dataset.parquet`` with the columns that training and
``datasets.load_dataset`` want. Rows of a typed source (Parquet, a saved dataset, the hub)
have no bytes of their own; their typed values are taken from the source again.
"""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

import orjson

from selectit_dagster.errors import ArtefactError
from selectit_dagster.progress import Progress
from selectit_dagster.selection.columnar import ParquetStream, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

DATASET_FILE = "dataset.parquet"
_TYPED = ("parquet", "datasets", "hub")
_ROWS = 1 << 14
_TYPED_ROWS = 200_000
_CHECKED_ROWS = 500


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes
    ----------
    names:
        File names in the folder.
    rows:
        Number of records.
    characters:
        Sum of the responses' lengths in characters.
    content:
        SHA-256 over record id, instruction, input and response in order: what training
        depends on. It does not change when only scores do.
    """

    names: list[str]
    rows: int
    characters: int
    content: str


class _DataWriter(Protocol):
    def write(self, batch: pa.RecordBatch) -> None: ...
    def close(self) -> None: ...


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

    Raises
    ------
    ArtefactError
        When the source's rows are no longer those that were read.
    """

    def __init__(self, path: Path, source: dict[str, Any]) -> None:
        self._path = path
        self._source = source
        self._positions: list[int] = []
        self._raw: list[bytes] = []
        self._stream: ParquetStream | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows that the batch's positions name."""
        self._positions += batch.column("position").to_pylist()
        self._raw += batch.column("raw").to_pylist()
        if len(self._positions) >= _TYPED_ROWS:
            self._flush()

    def _flush(self) -> None:
        from selectit_dagster.data.arrow_reader import canonical_json, take_rows
        from selectit_dagster.experiment import DatasetSection

        section = DatasetSection.model_validate(
            {"path": self._source["path"], "split": self._source["split"]}
        )
        table = take_rows(section, self._source, self._positions)
        # the source is read again, perhaps much later: make sure that it did not change
        step = max(1, len(self._raw) // _CHECKED_ROWS)
        checked = table.take(list(range(0, len(self._raw), step))).to_pylist()
        for row, raw in zip(checked, self._raw[::step], strict=True):
            if canonical_json(row) != raw:
                raise ArtefactError(
                    f"{section.path} is not what it was when it was read",
                    hint="materialise raw_dataset again",
                )
        if self._stream is None:
            self._stream = ParquetStream(self._path, schema=table.schema).__enter__()
        for part in table.combine_chunks().to_batches():
            self._stream.write(part)
        self._positions, self._raw = [], []

    def close(self) -> None:
        """Write what is left and close."""
        if self._positions or self._stream is None:
            self._flush()
        if self._stream is not None:
            self._stream.__exit__(None, None, None)


class SelectedWriter:
    """Both files of a selected dataset, from batches in rank order."""

    def __init__(self, folder: Path, source: dict[str, Any]) -> None:
        self.data_name = data_name(source)
        kind = TypedWriter if source["format"] in _TYPED else TextWriter
        self._data: _DataWriter = kind(folder / self.data_name, source)
        self._dataset = ParquetStream(folder / DATASET_FILE, schema=dataset_schema())
        self._content = hashlib.sha256()
        self._characters = 0

    def __enter__(self) -> SelectedWriter:
        self._dataset.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._dataset.__exit__(kind, error, trace)
        if error is None:
            self._data.close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch with all columns of ``records.parquet``, ``rank`` and ``score``."""
        import pyarrow.compute as pc

        self._data.write(batch)
        columns = dataset_schema().names
        self._dataset.write(batch.select(columns).cast(dataset_schema()))
        texts = [batch.column(name).to_pylist() for name in columns[:4]]
        for row in zip(*texts, strict=True):
            self._content.update(orjson.dumps(row))
        self._characters += pc.sum(batch.column("length")).as_py() or 0

    def written(self) -> Written:
        """Return what was written."""
        return Written(
            names=[self.data_name, DATASET_FILE],
            rows=self._dataset.rows,
            characters=self._characters,
            content=self._content.hexdigest(),
        )


def data_name(source: dict[str, Any]) -> str:
    """Return the name of the file in the source's format: ``data.jsonl.gz``."""
    if source["format"] in _TYPED:
        return "data.parquet"
    packed = {"gzip": ".gz", "zstd": ".zst"}.get(str(source.get("compression")), "")
    return f"data.{source['format']}{packed}"


def dataset_schema() -> pa.Schema:
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
        ]
    )


def write_selected(
    records: Path,
    chosen: Path,
    count: int,
    source: dict[str, Any],
    work: Workspace,
    progress: Progress,
) -> Written:
    """Write ``data.*`` and ``dataset.parquet`` into the workspace's folder.

    Parameters
    ----------
    records:
        ``records.parquet`` of the curated dataset.
    chosen:
        Parquet with ``record_id``, ``rank`` and ``score`` of the chosen records.
    count:
        How many are chosen, for the progress and as a check.
    source:
        What the manifest of the curated dataset says about the source's format.
    """
    query = (
        "SELECT record_id, position, instruction, input, response, raw, rank, score, "
        f"length(response)::INTEGER AS length FROM {work.table(records)} "
        f"JOIN {work.table(chosen)} USING (record_id) ORDER BY rank"
    )
    done = 0
    with SelectedWriter(work.folder, source) as writer:
        for batch in _checked(work.batches(query, _ROWS)):
            writer.write(batch)
            done += batch.num_rows
            progress.update(done, count)
    written = writer.written()
    if written.rows != count:
        raise ArtefactError(
            f"{count:,} records were chosen but {written.rows:,} of them are in {records}",
            hint="materialise curated_dataset and ranking again",
        )
    return written


def _checked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Pass batches on, checking that ranks count 1, 2, 3, ... without gap."""
    expected = 1
    for batch in batches:
        ranks = batch.column("rank").to_numpy()
        if ranks[0] != expected or (ranks[1:] - ranks[:-1] != 1).any():
            raise ArtefactError("the chosen records' ranks do not count 1, 2, 3, ...")
        expected += batch.num_rows
        yield batch
