"""Readers of typed tables: Parquet, saved ``datasets`` folders and the hub.

A row's ``raw`` is its canonical JSON (columns in the schema's order), because a typed row
has no bytes of its own; its position leads back to the typed row (``rows_at``).
"""

from __future__ import annotations

import base64
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from selectit_dagster.data.fields import Unusable
from selectit_dagster.data.json_reader import Row
from selectit_dagster.display import one_line
from selectit_dagster.errors import TransientError, UserError, first_line
from selectit_dagster.experiment import DatasetSection

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

BATCH_ROWS = 2048


class TypedReader:
    """Yields the rows of a table that comes in Arrow batches; rows have no line."""

    line = 0

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch], name: str) -> None:
        plain = _plain_schema(schema, name)
        self.schema = plain
        self.batches = (b if plain is schema else b.cast(plain) for b in batches)
        self._decoders = {f.name: d for f in plain if (d := _json_decoder(f.type)) is not None}

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches:
            for row in self.rows(batch):
                if isinstance(row, Unusable):
                    yield b"", row
                else:
                    yield canonical_json(row), row

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
    if _is_list(kind):
        decode = _json_decoder(kind.value_type)
        return decode and (lambda value: value and [decode(entry) for entry in value])
    return None


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kinds = pa.types
    flat = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
    return bool(flat or kinds.is_list_view(kind) or kinds.is_large_list_view(kind))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type without views and run lengths, for which kernels and writers are missing."""
    import pyarrow as pa

    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_plain_type(f.type)) for f in kind])
    if pa.types.is_list_view(kind) or pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_large_list_view(kind) or pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind


def _plain_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """Return the schema that rows are read, taken and written in.

    Raises
    ------
    UserError
        Naming the first column whose type could not be written back.
    """
    import io

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


def canonical_json(row: dict[str, Any]) -> bytes:
    """Return a typed row as JSON; what JSON lacks becomes text (bytes as base64)."""
    try:
        return orjson.dumps(row, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except (orjson.JSONEncodeError, TypeError):
        return repr(row).encode("utf-8", "backslashreplace")


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def schema_table(schema: pa.Schema) -> list[dict[str, str]]:
    """Return a schema as name and type of each column."""
    return [{"name": field.name, "type": str(field.type)} for field in schema]


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
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet: {first_line(error)}",
            hint="the file is damaged, or was not written to its end",
        ) from error

    def batches() -> Iterator[pa.RecordBatch]:
        done = 0
        try:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                done += batch.num_rows
                yield batch
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"{path}: the Parquet data are damaged after row {done:,}: {first_line(error)}",
                hint="copy or make the file again",
            ) from error

    return TypedReader(_distinct(parquet.schema_arrow, str(path)), batches(), str(path))


def _distinct(schema: pa.Schema, name: str) -> pa.Schema:
    """Return the schema after checking that no column name stands twice: a row could not say which.

    Raises
    ------
    UserError
        Naming the column.
    """
    repeated = sorted(column for column, n in Counter(schema.names).items() if n > 1)
    if repeated:
        raise UserError(
            f"{name} has the column {one_line(repeated[0], 80)!r} more than once",
            hint="give each column a name of its own",
        )
    return schema


def open_saved(path: Path, split: str) -> TypedReader:
    """Open a folder written by ``datasets.save_to_disk``.

    Raises
    ------
    UserError
        When it cannot be loaded or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise UserError(
            f"{path} cannot be loaded as a saved dataset: {first_line(error)}",
            hint="save it again with datasets.save_to_disk",
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        name = split.partition("[")[0]
        if name not in loaded:
            raise UserError(
                f"{path} has no split {name!r}; it has: {', '.join(loaded)}",
                hint="set dataset.split",
            )
        loaded = _sliced(loaded[name], name, split)
    schema = _distinct(loaded.features.arrow_schema, str(path))
    return TypedReader(schema, _arrow_batches(loaded), str(path))


def _sliced(loaded: Any, name: str, split: str) -> Any:  # noqa: ANN401 - a lazy library's datasets
    """Return the part of a split that ``train[:10%]`` and the like name."""
    import datasets

    if "[" not in split:
        return loaded
    try:
        found = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(loaded)})[0]
        return loaded.select(range(found.from_ or 0, len(loaded) if found.to is None else found.to))
    except (ValueError, AssertionError, AttributeError) as error:
        raise UserError(
            f"dataset.split {split!r} is no slice of a split: {first_line(error)}",
            hint="for example train[:1000] or train[10%:20%]",
        ) from error


def _arrow_batches(dataset: Any) -> Iterator[pa.RecordBatch]:  # noqa: ANN401 - lazy library
    """Yield the batches of a map-style or streamed dataset."""
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from table.to_batches()


def resolve_hub_commit(name: str, revision: str | None) -> str:
    """Return the commit that a hub dataset's revision stands for.

    Raises
    ------
    UserError
        When there is no such dataset or revision, or it may not be read.
    TransientError
        When the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub_errors

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except hub_errors.OfflineModeIsEnabled as error:
        raise UserError(
            f"dataset {name!r} is no local file or folder, and the hub is switched off "
            "(HF_HUB_OFFLINE)",
            hint="give a local path, or allow the hub",
        ) from error
    except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError) as error:
        raise UserError(
            f"the hub has no dataset {name!r}"
            + (f" at revision {revision!r}" if revision else "")
            + ", or you may not read it",
            hint="check dataset.path and dataset.revision; a private one needs HF_TOKEN",
        ) from error
    except hub_errors.HFValidationError as error:
        raise UserError(
            f"{name!r} is neither a file here nor a hub name: {first_line(error)}",
            hint="check dataset.path: a file or folder that is there, or owner/name on the hub",
        ) from error
    except (hub_errors.HfHubHTTPError, OSError) as error:
        raise TransientError(f"the hub cannot be reached for dataset {name!r}: {error}") from error


def open_loaded(section: DatasetSection, revision: str | None) -> TypedReader:
    """Open a hub dataset through ``load_dataset``.

    Raises
    ------
    UserError
        When it cannot be loaded or has no such split.
    TransientError
        When the hub cannot be reached.
    """
    import datasets

    try:
        # a slice needs the whole split at hand
        streaming = "[" not in section.split
        loaded = datasets.load_dataset(
            section.path,
            *([section.config] if section.config else []),
            split=section.split,
            revision=revision,
            streaming=streaming,
        )
        features = loaded.features or loaded._resolve_features().features
    except ConnectionError as error:
        raise TransientError(f"dataset {section.path!r} cannot be fetched: {error}") from error
    except Exception as error:  # the library raises many kinds for a bad folder or split
        raise UserError(
            f"dataset {section.path!r} (split {section.split!r}) cannot be loaded: "
            f"{first_line(error)}",
            hint="check dataset.path, dataset.split and dataset.revision",
        ) from error
    batches = _guarded(_arrow_batches(loaded), section.path)
    return TypedReader(features.arrow_schema, batches, section.path)


def _guarded(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[pa.RecordBatch]:
    """Name the dataset when its data turn out to be unreadable half-way."""
    done = 0
    try:
        for batch in batches:
            done += batch.num_rows
            yield batch
    except (UserError, TransientError, GeneratorExit):
        raise
    except ConnectionError as error:
        raise TransientError(f"dataset {name!r}: connection lost after row {done:,}") from error
    except Exception as error:  # the library's readers raise many kinds
        raise UserError(
            f"dataset {name!r}: the data cannot be read after row {done:,}: {first_line(error)}",
            hint="copy or make its files again: one is damaged, or not like the others",
        ) from error


def rows_at(
    reader: TypedReader, positions: npt.NDArray[np.int64], name: str
) -> Iterator[pa.RecordBatch]:
    """Yield the typed rows at ``positions`` from a freshly opened source.

    Parameters
    ----------
    reader:
        The source, opened as it was when it was read.
    positions:
        Row numbers in the source, ascending.
    name:
        What the source is called in messages.

    Raises
    ------
    UserError
        When the source no longer has these rows.
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


def open_typed(section: DatasetSection, kind: str, revision: str | None) -> TypedReader:
    """Open a source of one of the typed formats: ``parquet``, ``datasets`` or ``hub``."""
    if kind == "parquet":
        return open_parquet(Path(section.path))
    if kind == "datasets":
        return open_saved(Path(section.path), section.split)
    return open_loaded(section, revision)
