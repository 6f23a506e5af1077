"""Where benchmark questions come from: local folders in the published layout, or the hub."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from selectit_dagster.artefacts.files import sha256_file, sha256_json
from selectit_dagster.artefacts.hub import hub_commit
from selectit_dagster.errors import TransientError, UserError, first_line

T = TypeVar("T")
_MOST_BYTES = 1 << 30
_LAYOUT = "give the file in the benchmark's published layout"
_LOCAL = "give the benchmark's path: a local folder in the published layout"


@dataclass(frozen=True)
class HubData:
    """One configuration of a hub dataset."""

    name: str
    config: str | None = None
    files: str | None = None


def open_text(path: Path) -> str:
    """Return the text of a file that may be gzipped.

    Raises
    ------
    UserError
        When it cannot be read as UTF-8, or is larger than a benchmark can be.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            data = handle.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise UserError(
                f"the benchmark file {path} holds more than {_MOST_BYTES >> 20} MiB of text",
                hint="check the benchmark's path: questions take a few MiB",
            )
        return data.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the benchmark file {path}: {error}", hint="check the benchmark's path"
        ) from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Read a JSON file that may be gzipped; a fault is named with its line."""
    try:
        return json.loads(open_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", hint=_LAYOUT) from error


def read_jsonl(path: Path) -> list[Record]:
    """Read JSON Lines that may be gzipped; a fault is named with its line."""
    records: list[Record] = []
    for number, line in enumerate(open_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}", hint=_LAYOUT) from error
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected an object with the question's fields", hint=_LAYOUT)
        records.append(Record(value, where, len(records)))
    return records


def read_csv(path: Path) -> list[list[str]]:
    """Read a headerless CSV file; every field stays the text it is."""
    # strict: without it a quote that is never closed takes in all that follows
    rows = csv.reader(io.StringIO(open_text(path), newline=""), strict=True)
    try:
        return list(rows)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not CSV: {error}", hint=_LAYOUT) from error


class Record(dict[str, Any]):
    """One object of a benchmark's data, which knows where it is, and its ``number`` from 0."""

    def __init__(self, value: dict[str, Any], where: str, number: int = 0) -> None:
        super().__init__(value)
        self.where, self.number = where, number

    def text(self, name: str) -> str:
        """Return a field that must be a text.

        Raises
        ------
        UserError
            When it is missing or no text, naming the place and the field.
        """
        value = self.get(name)
        if not isinstance(value, str):
            found = "nothing" if value is None else type(value).__name__
            raise UserError(
                f"{self.where}: field {name!r} must be a text, found {found}", hint=_LAYOUT
            )
        return value

    def objects(self, name: str) -> list[Record]:
        """Return the objects of a field that must be a list of them; see :meth:`text`."""
        return as_records(self.get(name), f"{self.where}, {name}")


def as_records(value: Any, where: str) -> list[Record]:  # noqa: ANN401 - any JSON value
    """Return the objects of a list, each with its place.

    Raises
    ------
    UserError
        When it is something else, naming the place.
    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UserError(f"{where}: expected a list of objects", hint=_LAYOUT)
    return [Record(one, f"{where}, number {n + 1}", n) for n, one in enumerate(value)]


def read_json_records(path: Path, name: str | None = None) -> list[Record]:
    """Read a JSON file's list of objects, or the list that its object has under ``name``."""
    value = read_json(path)
    if name is None:
        return as_records(value, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object with {name!r}", hint=_LAYOUT)
    return Record(value, str(path)).objects(name)


def local_files(path: Path | None, patterns: Sequence[str], what: str) -> list[Path]:
    """Return the files of a benchmark: ``path`` itself, or those that match in its folder.

    Raises
    ------
    UserError
        When there are none, naming what was expected.
    """
    path = path or Path()
    if path.is_file():
        return [path]
    found = sorted({p for pattern in patterns for p in path.glob(pattern) if p.is_file()})
    if not found:
        raise UserError(
            f"{path} holds no {what}: expected {' or '.join(patterns)}",
            hint="give the folder or file in the published layout",
        )
    return found


def files_digest(paths: Iterable[Path]) -> str:
    """Return one SHA-256 over names and contents of files."""
    return sha256_json([[p.name, sha256_file(p)] for p in sorted(paths)])


def data_commit(data: HubData) -> str:
    """Return the commit that the hub dataset's main branch stands at; see :func:`hub_commit`."""
    return hub_commit(data.name, None, "dataset", hint=_LOCAL)


def hub_records(data: HubData, split: str, commit: str | None = None) -> list[Record]:
    """Return one split of a hub dataset.

    Raises
    ------
    UserError
        When the dataset cannot be found or read.
    """
    import datasets

    try:
        if data.files is not None:
            at = f"@{commit}" if commit else ""
            url = f"hf://datasets/{data.name}{at}/{data.files}"
            table = datasets.load_dataset("json", data_files=url, split="train")
        else:
            table = datasets.load_dataset(data.name, data.config, split=split, revision=commit)
    except ConnectionError as error:
        raise TransientError(f"the hub cannot be reached for {data.name}: {error}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _hub_error(data, error) from error
    return as_records([dict(record) for record in table], f"{data.name}, {split}")


def _hub_error(data: HubData, error: Exception) -> UserError:
    return UserError(
        f"benchmark data {data.name!r} is neither a local folder nor a hub dataset that can be "
        f"reached: {first_line(error)}",
        hint=_LOCAL,
    )


def sample_groups(
    items: Sequence[T],
    groups: Sequence[str],
    *,
    limit: int | None,
    per_group: int | None,
    seed: int,
) -> list[T]:
    """Return a seeded sample, in the items' own order.

    ``limit`` items in all, spread over the groups as evenly as they allow; else ``per_group``
    of each. Each group is drawn from its own stream, so other groups do not disturb it.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if limit is not None:
        quota = _spread(limit, {name: len(part) for name, part in members.items()})
    elif per_group is not None:
        quota = dict.fromkeys(members, per_group)
    else:
        return list(items)
    chosen: list[int] = []
    for name, part in members.items():
        count = min(quota[name], len(part))
        # a draw that a seed must reproduce, nothing secret
        chosen += random.Random(f"{seed}/{name}").sample(part, count)  # noqa: S311
    return [items[index] for index in sorted(chosen)]


def _spread(total: int, sizes: dict[str, int]) -> dict[str, int]:
    """Share ``total`` out over groups of ``sizes``, evenly, the smallest groups first full."""
    quota: dict[str, int] = {}
    left = total
    names = sorted(sizes, key=lambda name: (sizes[name], name))
    for position, name in enumerate(names):
        quota[name] = min(sizes[name], left // (len(names) - position))
        left -= quota[name]
    return quota
