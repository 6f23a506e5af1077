"""The chosen records as one file, in the format that its suffix says."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import orjson

from selectit_dagster.artefacts.files import atomic_path
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.data.fields import Row
from selectit_dagster.errors import UserError
from selectit_dagster.selection.dataset_writer import DATASET_FILE, TextWriter

_FORMATS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_AT_ONCE = 4096


def output_format(path: Path) -> tuple[str, str]:
    """Return format and compression that a file's suffixes say.

    Raises
    ------
    UserError
        When they name no format that is written.
    """
    compression = _COMPRESSION.get(path.suffix.lower(), "none")
    plain = path if compression == "none" else path.with_suffix("")
    kind = _FORMATS.get(plain.suffix.lower())
    if kind is None or (kind == "parquet" and compression != "none"):
        raise UserError(
            f"{path.name}: the suffix of the output names no format that is written",
            hint="end it in .json, .jsonl, .csv or .parquet; the first three also with .gz or .zst",
        )
    return kind, compression


def check_output_format(path: Path, source_format: str) -> None:
    """Refuse an output whose format the source's records cannot take.

    Raises
    ------
    UserError
        For CSV out of anything but CSV: nested values have no form there.
    """
    if output_format(path)[0] == "csv" and source_format != "csv":
        raise UserError(
            f"{path.name}: records that came as {source_format} cannot be written as CSV",
            hint="end the output in .jsonl, .json or .parquet",
        )


def write_output(folder: Path, manifest: Manifest, target: Path) -> None:
    """Write the records of a selected dataset to ``target``, best first.

    Records of JSON and JSON Lines keep their bytes in either of the two, but for one that stands on
    several lines, which JSON Lines cannot hold. Parquet out of text is ``dataset.parquet``.
    """
    source = folder / next(n for n in manifest.files if Path(n).name.startswith("data."))
    kind, compression = output_format(target)
    stored, packed = output_format(source)
    with atomic_path(target) as part:
        if (kind, compression) == (stored, packed):
            shutil.copyfile(source, part)
        elif kind == "parquet":
            shutil.copyfile(folder / DATASET_FILE, part)
        else:
            _convert(source, part, kind, compression)


def _convert(source: Path, target: Path, kind: str, compression: str) -> None:
    import pyarrow as pa

    from selectit_dagster.data.input_files import find_source
    from selectit_dagster.data.readers import open_source
    from selectit_dagster.experiment import DatasetSection

    section = DatasetSection(path=str(source))
    opened = open_source(section, find_source(section))
    rows = _records(opened.rows, kind, as_text=kind == "csv" and "csv" in opened.details)
    first = list(islice(rows, _AT_ONCE))
    shape = {"format": kind, "compression": compression, **opened.details}
    writer = TextWriter(target, shape)
    while first:
        writer.write(pa.record_batch({"raw": pa.array(first, pa.binary())}))
        first = list(islice(rows, _AT_ONCE))
    writer.close()


def _records(rows: Iterable[Row], kind: str, *, as_text: bool) -> Iterator[bytes]:
    from selectit_dagster.data.arrow_reader import canonical_json

    for raw, value, _, _ in rows:
        is_json = raw[:1] in (b"{", b"[")
        if as_text or (is_json and (kind == "json" or b"\n" not in raw)):
            yield raw
        elif is_json:
            yield orjson.dumps(orjson.loads(raw))
        else:
            yield canonical_json(value)
