"""Reader of typed tables (Parquet, saved ``datasets`` folders, the hub), all as Arrow batches.

A row's ``raw`` is its canonical JSON (columns in the schema's order), because a typed row
has no bytes of its own; its position leads back to the typed row (``rows_at``).
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from selectit_dagster.data.fields import Row, Unusable
from selectit_dagster.display import one_line
from selectit_dagster.errors import TransientError, UserError, first_line
from selectit_dagster.experiment import DatasetSection

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

BATCH_ROWS = 2048


class TypedReader:
    """The rows of a table that comes in Arrow batches, and the schema they are written back in.

    Raises
    ------
    UserError
        Naming a column that stands twice, or whose type could not be written back.
    """

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch], name: str) -> None:
        twice = sorted(column for column, n in Counter(schema.names).items() if n > 1)
        if twice:
            raise UserError(
                f"{name} has the column {one_line(twice[0], 80)!r} more than once",
                hint="give each column a name of its own",
            )
        plain = _plain_schema(schema, name)
        self.schema = plain
        self.batches = (b if plain is schema else b.cast(plain) for b in _whole(batches, name))
        self._decoders = {f.name: d for f in plain if (d := _json_decoder(f.type)) is not None}

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches:
            for row in self.rows(batch):
                yield Row(b"" if isinstance(row, Unusable) else canonical_json(row), row)

    def rows(self, batch: pa.RecordBatch) -> list[Any]:
        """Return the rows of a batch as Python values, texts of Arrow's JSON type decoded."""
        try:
            rows: list[Any] = batch.to_pylist()
        except (UnicodeDecodeError, OverflowError, ValueError):
            rows = [_python_row(batch, index) for index in range(batch.num_rows)]
        for row in rows if self._decoders else ():
            if not isinstance(row, Unusable):
                for name, decode in self._decoders.items():
                    row[name] = decode(row[name])
        return rows


def _whole(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[pa.RecordBatch]:
    """Name the source when its data turn out to be unreadable half-way."""
    done = 0
    try:
        for batch in batches:
            done += batch.num_rows
            yield batch
    except (UserError, TransientError, GeneratorExit):
        raise
    except ConnectionError as error:
        raise TransientError(f"dataset {name!r}: connection lost after row {done:,}") from error
    except Exception as error:  # the libraries' readers raise many kinds
        raise UserError(
            f"{name}: the data are damaged after row {done:,}: {first_line(error)}",
            hint="copy or make the files again: one is damaged, or not like the others",
        ) from error


def _json_decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Return what decodes values of a type with Arrow's JSON type in it, None without one.

    ``datasets`` 5 stores columns of mixed content (tool calls) as this type.
    """
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else orjson.loads(value)
    if pa.types.is_struct(kind):
        inner = {f.name: d for f in kind if (d := _json_decoder(f.type)) is not None}
        if not inner:
            return None
        return lambda value: value and {**value, **{n: d(value[n]) for n, d in inner.items()}}
    if "list" in str(kind).partition("<")[0]:
        decode = _json_decoder(kind.value_type)
        return decode and (lambda value: value and [decode(entry) for entry in value])
    return None


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type without views and run lengths, for which kernels and writers are missing."""
    import pyarrow as pa

    known = pa.types
    if known.is_string_view(kind):
        return pa.string()
    if known.is_binary_view(kind):
        return pa.binary()
    if known.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if known.is_struct(kind):
        return pa.struct([f.with_type(_plain_type(f.type)) for f in kind])
    for make, forms in (
        (pa.list_, (known.is_list, known.is_list_view)),
        (pa.large_list, (known.is_large_list, known.is_large_list_view)),
    ):
        if any(form(kind) for form in forms):
            return make(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind


def _plain_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """Return the schema that rows are read, taken and written in."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for field in schema:
        kind = _plain_type(field.type)
        try:
            empty = pa.nulls(0, field.type)
            empty = empty if kind == field.type else empty.cast(kind)
            taken = empty.take(pa.array([], pa.int64()))
            pq.write_table(pa.table({"column": taken}), io.BytesIO())
        except (pa.ArrowException, ValueError) as error:
            raise UserError(
                f"{name}: the column {one_line(field.name, 80)!r} has the type {field.type}, "
                f"which cannot be written back: {first_line(error)}",
                hint="leave the column out, or store it as another type",
            ) from error
    plain = pa.schema([f.with_type(_plain_type(f.type)) for f in schema], schema.metadata)
    return schema if plain.equals(schema) else plain


def _python_row(batch: pa.RecordBatch, index: int) -> dict[str, Any] | Unusable:
    """Return one row, or the first column whose value has no Python form."""
    row = {}
    for name in batch.schema.names:
        try:
            row[name] = batch.column(name)[index].as_py()
        except UnicodeDecodeError as error:
            return Unusable(name, f"is not valid UTF-8 ({error.reason})")
        except (OverflowError, ValueError) as error:
            return Unusable(name, f"has a value that cannot be read: {error}")
    return row


def canonical_json(row: object) -> bytes:
    """Return a typed row as JSON; what JSON lacks becomes text (bytes as base64)."""

    def plain(value: object) -> str:
        return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

    try:
        return orjson.dumps(row, default=plain, option=orjson.OPT_NON_STR_KEYS)
    except (orjson.JSONEncodeError, TypeError):
        return repr(row).encode("utf-8", "backslashreplace")


def open_typed(section: DatasetSection, kind: str, revision: str | None) -> TypedReader:
    """Open a source of one of the typed formats: ``parquet``, ``datasets`` or ``hub``.

    Raises
    ------
    UserError
        When it cannot be opened, or has no such split.
    TransientError
        When the hub cannot be reached.
    """
    if kind == "parquet":
        return open_parquet(Path(section.path))
    loaded = _loaded(section, kind, revision)
    features = loaded.features or loaded._resolve_features().features

    def batches() -> Iterator[pa.RecordBatch]:
        for table in loaded.with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from table.to_batches()

    return TypedReader(features.arrow_schema, batches(), section.path)


def open_parquet(path: Path) -> TypedReader:
    """Open a Parquet file for streaming.

    Raises
    ------
    UserError
        When the file is no Parquet, is damaged, or was not written to its end.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet: {first_line(error)}",
            hint="the file is damaged, or was not written to its end",
        ) from error
    return TypedReader(schema, parquet.iter_batches(batch_size=BATCH_ROWS), str(path))


def _loaded(section: DatasetSection, kind: str, revision: str | None) -> Any:  # noqa: ANN401 - lazy
    """Return a saved dataset, or one of the hub, as ``datasets`` loads it."""
    import datasets

    split, path = section.split, section.path
    name, bracket, _ = split.partition("[")
    try:
        if kind == "hub":
            config = [section.config] if section.config else []
            # a slice needs the whole split at hand
            return datasets.load_dataset(
                path, *config, split=split, revision=revision, streaming=not bracket
            )
        loaded = datasets.load_from_disk(path)
        if not isinstance(loaded, datasets.DatasetDict):
            return loaded
        if name in loaded:
            return _sliced(loaded[name], name, split) if bracket else loaded[name]
    except ConnectionError as error:
        raise TransientError(f"dataset {path!r} cannot be fetched: {error}") from error
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds for a bad folder or split
        raise UserError(
            f"dataset {path!r} (split {split!r}) cannot be loaded: {first_line(error)}",
            hint="check dataset.path, dataset.split and dataset.revision; a folder is one that "
            "datasets.save_to_disk wrote",
        ) from error
    raise UserError(
        f"{path} has no split {name!r}; it has: {', '.join(loaded)}", hint="set dataset.split"
    )


def _sliced(loaded: Any, name: str, split: str) -> Any:  # noqa: ANN401 - a lazy library's datasets
    """Return the part of a split that ``train[:10%]`` and the like name."""
    import datasets

    try:
        part = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(loaded)})[0]
        return loaded.select(range(part.from_ or 0, len(loaded) if part.to is None else part.to))
    except (ValueError, AssertionError, AttributeError) as error:
        raise UserError(
            f"dataset.split {split!r} is no slice of a split: {first_line(error)}",
            hint="for example train[:1000] or train[10%:20%]",
        ) from error


def rows_at(
    reader: TypedReader, positions: npt.NDArray[np.int64], name: str
) -> Iterator[pa.RecordBatch]:
    """Yield the typed rows at ascending row numbers from a source opened as it was when read.

    Raises
    ------
    UserError
        When the source no longer has these rows; ``name`` is what it is called then.
    """
    import numpy as np
    import pyarrow as pa

    start = done = 0
    with contextlib.closing(reader.batches):
        for batch in reader.batches:
            low, high = np.searchsorted(positions, [start, start + batch.num_rows])
            if high > low:
                yield batch.take(pa.array(positions[low:high] - start))
            start += batch.num_rows
            done = int(high)
            if done == len(positions):
                break
    if done != len(positions):
        raise UserError(
            f"{name} no longer has the rows that were read from it",
            hint="it was changed since; materialise raw_dataset again",
        )
