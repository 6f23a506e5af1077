"""Which files a dataset is: one, a folder's, a pattern's, several inputs', in a stated order."""

from __future__ import annotations

import glob
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import sha256_file, sha256_json
from selectit_dagster.data.file_formats import detect_format, head_of
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import DatasetSection, is_hub_name

FILES = "files"  # the format of several files together
_PACKED = {".gz", ".zst"}
_DATA = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"}
_NO_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
}
# what the hub and `datasets` call the shards of a split
_SHARD = re.compile(r"^(?P<split>[A-Za-z_]+)-\d{5}-of-\d{5}")
_SAVED = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class InputFile:
    """One file: its name as it is reported, its place, how it is read."""

    name: str
    path: Path
    format: str
    compression: str


@dataclass(frozen=True)
class Source:
    """What ``dataset.path`` names.

    Attributes
    ----------
    format:
        ``json``, ``jsonl``, ``csv`` or ``parquet`` of a single file, ``files`` for several,
        ``datasets`` or ``hub``.
    files:
        The files in the order in which they are read: as the inputs are given, a folder's and
        a pattern's by name.
    passed_over:
        Files of a folder that are no data, with the reason.
    """

    format: str
    files: tuple[InputFile, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()

    @property
    def compression(self) -> str:
        """Compression of a single file."""
        return self.files[0].compression if len(self.files) == 1 else "none"

    @property
    def written_format(self) -> str:
        """Format in which records of the source are written back."""
        if self.format != FILES:
            return self.format
        # a record of an array may stand on several lines, which JSON Lines cannot hold
        return "json" if any(file.format == "json" for file in self.files) else "jsonl"

    def notes(self) -> list[str]:
        """Return what a user could miss of the source, a line each."""
        passed = [f"{name} ({why})" for name, why in self.passed_over]
        return [f"files passed over: {first_ten(passed)}"] if passed else []

    def identity(self) -> dict[str, Any]:
        """Return what the content of local files is known by."""
        table = [
            {
                "file": file.name,
                "format": file.format,
                "compression": file.compression,
                "sha256": sha256_file(file.path),
                "bytes": file.path.stat().st_size,
            }
            for file in self.files
        ]
        if len(table) == 1:
            return {name: table[0][name] for name in ("sha256", "bytes")}
        size = sum(file.path.stat().st_size for file in self.files)
        return {"sha256": sha256_json(table), "bytes": size, "files": table}


def first_ten(entries: list[str]) -> str:
    """Return the first ten entries and how many more there are."""
    more = f" and {len(entries) - 10} more" if len(entries) > 10 else ""
    return ", ".join(entries[:10]) + more


def is_pattern(path: str) -> bool:
    """Tell whether a path that does not exist is a pattern of names."""
    return any(mark in path for mark in "*?[") and not Path(path).exists()


def matches(path: str) -> list[Path]:
    """Return the files that a pattern or a path names, in order of their names."""
    if is_pattern(path):
        return sorted(Path(found) for found in glob.glob(path, recursive=True))  # noqa: PTH207
    return [Path(path)]


def find_source(section: DatasetSection) -> Source:
    """Return what a dataset section names, its files recognised by content.

    Raises
    ------
    UserError
        When there is no such dataset, nothing in it is data, or it holds several splits.
    """
    given = [section.path, *section.more]
    if len(given) == 1 and (kind := _library_format(section)):
        return Source(kind)
    found: list[InputFile] = []
    passed: list[tuple[str, str]] = []
    for entry in given:
        found += _files_of(entry, section, passed)
    ((path, times),) = Counter(file.path for file in found).most_common(1)
    if times > 1:
        raise UserError(f"{path} is named twice by dataset.path", hint="name each file once")
    kind = found[0].format if len(found) == 1 else FILES
    return Source(kind, tuple(found), tuple(passed))


def _library_format(section: DatasetSection) -> str:
    """Return ``hub`` or ``datasets`` where that library reads the dataset, empty for our files."""
    path = Path(section.path)
    if section.format == "hub" or (not path.exists() and is_hub_name(section.path)):
        if section.format in {"hub", "auto"}:
            return "hub"
        raise UserError(
            f"the dataset {path} does not exist", hint="check dataset.path in the experiment"
        )
    saved = any((path / name).is_file() for name in _SAVED)
    if section.format == "datasets" and path.is_file():
        raise UserError(
            f"{path} is a file, not the folder of a saved dataset",
            hint="give the folder, or leave dataset.format out: a file's content shows it",
        )
    if section.format == "datasets" and path.is_dir() and not saved:
        raise UserError(
            f"{path} is no saved dataset: it has neither state.json nor dataset_dict.json",
            hint="leave dataset.format out: a folder's files are read one after the other",
        )
    return "datasets" if saved else ""


def _files_of(
    entry: str, section: DatasetSection, passed: list[tuple[str, str]]
) -> list[InputFile]:
    """Return the data files that a path, a folder or a pattern names; note what is passed over."""
    paths = matches(entry)
    if not paths:
        raise UserError(f"no file matches {entry}", hint="check dataset.path in the experiment")
    folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    if folder is not None:
        everything = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in everything]
        paths = _one_split(folder, _data_files(folder, names, passed), section, passed)
    elif is_pattern(entry):
        passed += [(str(path), why) for path in paths if (why := _no_data(path, strict=False))]
        paths = [path for path in paths if path.is_file() and not _no_data(path, strict=False)]
        if not paths:
            raise UserError(
                f"no data file matches {entry}", hint="check dataset.path in the experiment"
            )
    files = []
    for path in paths:
        name = str(path.relative_to(folder)) if folder is not None else path.name
        compression, head = head_of(path)
        kind = section.format if section.format in {"json", "jsonl", "csv", "parquet"} else None
        files.append(
            InputFile(name, path, kind or detect_format(path, compression, head), compression)
        )
    return files


def _data_files(folder: Path, names: list[str], passed: list[tuple[str, str]]) -> list[Path]:
    """Return a folder's data files, noting what is passed over."""
    reasons = {name: _no_data(Path(name), strict=True) for name in names}
    passed += [(name, why) for name, why in reasons.items() if why]
    files = [folder / name for name, why in reasons.items() if not why]
    if not files:
        named = ", ".join(f"{name} ({why})" for name, why in passed[:5]) or "no files"
        raise UserError(
            f"{folder} holds no data files: {named}",
            hint="data files end in .json, .jsonl, .csv, .tsv or .parquet, perhaps .gz or .zst",
        )
    return files


def _no_data(path: Path, *, strict: bool) -> str:
    """Return why a file is passed over, empty for data."""
    if any(part.startswith(".") for part in path.parts if part not in ("..", ".")):
        return "hidden"
    if path.name.endswith(("~", ".bak", ".orig", ".tmp", ".swp", ".part")):
        return "a backup"
    plain = Path(path.stem) if path.suffix in _PACKED else path
    if strict and (plain.suffix.lower() not in _DATA or path.name in _NO_DATA):
        return "no data"
    return ""


def _one_split(
    folder: Path, files: list[Path], section: DatasetSection, passed: list[tuple[str, str]]
) -> list[Path]:
    """Return the shards of the split that was asked for, where the names say splits.

    Raises
    ------
    UserError
        When there are several and ``dataset.split`` names none of them.
    """
    splits = {path: found["split"] for path in files if (found := _SHARD.match(path.name))}
    names = sorted(set(splits.values()))
    if len(names) < 2:
        return files
    if "split" not in section.model_fields_set or section.split not in names:
        raise UserError(
            f"{folder} holds the shards of several splits: {', '.join(names)}",
            hint="say which with dataset.split, or name the files",
        )
    passed += [
        (str(path.relative_to(folder)), f"split {split}")
        for path, split in splits.items()
        if split != section.split
    ]
    return [path for path in files if splits.get(path, section.split) == section.split]
