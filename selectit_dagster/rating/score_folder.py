"""A score folder over its life: in progress, complete, out of date, put aside.

Rows are comparable when the engine's settings are the same (model, tokenizer, dtype, layout,
limits). Those rows are reused, by the rated text and the prompt, whatever the dataset or the
number of prompts was; rows made under other settings are put aside in a folder of their
own, never mixed and never deleted.
"""

from __future__ import annotations

import logging
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selectit_dagster.artefacts.files import read_json, sha256_json, write_json
from selectit_dagster.artefacts.manifest import MANIFEST, Fingerprint, differences, read_manifest
from selectit_dagster.artefacts.unfinished_work import UnfinishedWork
from selectit_dagster.errors import ArtefactError
from selectit_dagster.inference.failures import is_device_failure
from selectit_dagster.rating.score_journal import read_journal
from selectit_dagster.rating.score_store import OK, Ratings, read_index, read_part

LOGGER = logging.getLogger("selectit_dagster")
OnMismatch = Literal["put-aside", "refuse"]

STATE = "state.json"
REUSE = ".reuse"
# the fields of the fingerprint under which a row does not change
_REQUEST_FIELDS = ("records", "prompts", "adaptive")
_PARTS_IN_MEMORY = 4
# what of scoring under way can go on elsewhere
SCORE_ROWS = UnfinishedWork(
    (STATE, "part-*.parquet", "journal-*.jsonl"), rows=("part-", "journal-"), aside=REUSE
)


def engine_fields(fingerprint: Fingerprint) -> Fingerprint:
    """Return the part of the fingerprint under which stored rows are comparable."""
    return {name: value for name, value in fingerprint.items() if name not in _REQUEST_FIELDS}


def engine_digest(fingerprint: Fingerprint) -> str:
    """Return the digest of :func:`engine_fields`."""
    return sha256_json(engine_fields(fingerprint))


@dataclass
class ScoreFolder:
    """Readies a folder for one request; hold its lock meanwhile.

    Parameters
    ----------
    path:
        The score folder.
    fingerprint:
        What is to be made.
    """

    path: Path
    fingerprint: Fingerprint
    notes: list[str] = field(default_factory=list)

    @property
    def engine(self) -> str:
        """Digest of the engine's settings."""
        return engine_digest(self.fingerprint)

    def open(self, plan: dict[str, Any], on_mismatch: OnMismatch) -> dict[str, Any]:
        """Make the folder ready and return the plan to follow.

        An interrupted run of the same request on the same device goes on with its own plan.
        Otherwise what is there becomes reusable, or is put aside, and ``plan`` is written.

        Raises
        ------
        ArtefactError
            With ``refuse``, when the folder holds scores made under other settings: the
            message names each setting, stored and expected.
        """
        self._sweep()
        stored = self._stored()
        state = self._state()
        if (
            state
            and not (self.path / MANIFEST).exists()
            and state["fingerprint"] == self.fingerprint
            and state["plan"]["device"] == plan["device"]
        ):
            _reuse(self.path, [path for path in _row_files(self.path) if _failed_by_device(path)])
            return dict(state["plan"])
        if stored is not None and engine_digest(stored) != self.engine:
            self._supersede(stored, on_mismatch)
        retire_rows(self.path)
        write_json(self.path / STATE, {"fingerprint": self.fingerprint, "plan": plan})
        return plan

    def _sweep(self) -> None:
        """Remove the temporary files of a run that was killed while it wrote one."""
        for pattern in (".part-*", f".{STATE}.*", f".{MANIFEST}.*"):
            for path in self.path.glob(pattern):
                path.unlink()

    def _state(self) -> dict[str, Any] | None:
        path = self.path / STATE
        return dict(read_json(path)) if path.exists() else None

    def _stored(self) -> Fingerprint | None:
        """Return the fingerprint of what lies in the folder, complete or not."""
        manifest = read_manifest(self.path)
        if manifest is not None:
            return manifest.fingerprint
        state = self._state()
        return state["fingerprint"] if state else None

    def _supersede(self, stored: Fingerprint, on_mismatch: OnMismatch) -> None:
        changed = differences(engine_fields(stored), engine_fields(self.fingerprint))
        text = "; ".join(str(difference) for difference in changed)
        if on_mismatch == "refuse":
            raise ArtefactError(
                f"{self.path} holds scores made under other settings: {text}",
                hint="give another folder, or restore those settings",
            )
        aside = self._aside(engine_digest(stored))
        message = f"scores made under other settings ({text}) were put aside in {aside}"
        LOGGER.warning("%s: %s", self.path, message)
        self.notes.append(message)
        _move_all(self.path, aside)
        # settings that were in force before: their scores are taken up again
        before = self._aside(self.engine)
        if before.is_dir():
            _move_all(before, self.path)
            before.rmdir()

    def _aside(self, digest: str) -> Path:
        return self.path.with_name(f"{self.path.name}.superseded-{digest[:8]}")

    def discard(self) -> None:
        """Remove the rows of the request in progress, and its plan."""
        for path in _row_files(self.path):
            path.unlink()
        (self.path / STATE).unlink(missing_ok=True)

    def sources(self, *more: Path) -> RowSource:
        """Return the reusable rows, those of ``more`` score folders included."""
        return RowSource.of([self.path / REUSE, *more], self.engine)

    def finish(self, keys: np.ndarray, prompts: Sequence[str]) -> None:
        """Drop the plan, and the sources of which every row was taken over.

        ``keys``: the texts that are stored now, as :func:`short_keys` gives them. The plan goes
        last: while it is there, a start knows that this is to be done.
        """
        shutil.rmtree(self.path / ".audit", ignore_errors=True)
        folder = self.path / REUSE
        for path in _row_files(folder):
            found = _index_of(path)
            if found is None or (
                bool(np.isin(short_keys(found[0]), keys).all()) and set(found[1]) <= set(prompts)
            ):
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        (self.path / STATE).unlink(missing_ok=True)

    @property
    def is_tidy(self) -> bool:
        """Whether nothing of a run under way, or killed at its end, is there."""
        return not (self.path / STATE).exists()


def _failed_by_device(path: Path) -> bool:
    """Tell whether a part holds rows that failed by their device: those are asked again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix != ".parquet":  # a journal's rows are looked at one by one
        return False
    try:
        reasons = pq.read_table(path, columns=["reason"]).column("reason").drop_null()
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return False
    return any(is_device_failure(reason) for reason in reasons.unique().to_pylist())


def retire_rows(folder: Path) -> None:
    """Move every part and journal where later requests look for rows to take over."""
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / STATE).unlink(missing_ok=True)
    _reuse(folder, _row_files(folder))


def _reuse(folder: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        target = folder / REUSE / f"{path.stem}-{_unique(path)}{path.suffix}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)


def _row_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("part-*.parquet"), *folder.glob("journal-*.jsonl")])


def _unique(path: Path) -> str:
    stat = path.stat()
    return sha256_json([stat.st_mtime_ns, stat.st_size, stat.st_ino])[:12]


def _move_all(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    # the manifest goes first: without it neither folder passes for complete meanwhile
    for path in sorted(source.iterdir(), key=lambda path: path.name != MANIFEST):
        if path.name != ".lock":
            path.replace(target / path.name)


def _index_of(path: Path) -> tuple[list[str], list[str], str] | None:
    """Return keys, prompts and engine of a reusable file, None when it cannot be read."""
    if path.suffix == ".parquet":
        index = read_index(path)
        return None if index is None else (index.keys, index.prompts, index.engine)
    journal = read_journal(path)
    if journal is None:
        return None
    return [row.key for row in journal.rows], journal.prompts, journal.engine


@dataclass
class RowSource:
    """Finds reusable rows by rated text and prompt.

    Holds 12 bytes per stored record in memory, and the few parts read last.
    """

    paths: list[Path]
    hashes: np.ndarray
    files: np.ndarray
    _loaded: OrderedDict[int, dict[tuple[str, str], tuple[np.ndarray, float, str | None]]] = field(
        default_factory=OrderedDict
    )

    @classmethod
    def of(cls, folders: Sequence[Path], engine: str) -> RowSource:
        """Return the rows in ``folders`` that were made under ``engine``."""
        paths: list[Path] = []
        hashes: list[np.ndarray] = []
        for path in [path for folder in folders for path in _row_files(folder)]:
            found = _index_of(path)
            if found is not None and found[2] == engine:
                paths.append(path)
                hashes.append(short_keys(found[0]))
        files = [np.full(len(part), number, np.int32) for number, part in enumerate(hashes)]
        if not paths:
            return cls.none()
        together, numbers = np.concatenate(hashes), np.concatenate(files)
        order = np.argsort(together, kind="stable")
        return cls(paths, together[order], numbers[order])

    @classmethod
    def none(cls) -> RowSource:
        """Return a source without rows."""
        return cls([], np.empty(0, np.uint64), np.empty(0, np.int32))

    def fill(self, ratings: Ratings, prompts: Sequence[str]) -> int:
        """Copy what is stored of ``ratings``' pending rows into it; return how many."""
        if not self.paths:
            return 0
        short = short_keys(ratings.keys)
        low = np.searchsorted(self.hashes, short, side="left")
        high = np.searchsorted(self.hashes, short, side="right")
        filled = 0
        for record, key in enumerate(ratings.keys):
            for file in sorted(set(self.files[low[record] : high[record]].tolist())):
                rows = self._rows(file)
                for prompt, digest in enumerate(prompts):
                    row = rows.get((key, digest))
                    if row is None or ratings.status[record, prompt] == OK:
                        continue
                    ratings.probabilities[record, prompt], mass, reason = row
                    ratings.rating_mass[record, prompt] = mass
                    ratings.status[record, prompt] = OK
                    if reason is not None:
                        ratings.reasons[record, prompt] = reason
                    filled += 1
        return filled

    def _rows(self, file: int) -> dict[tuple[str, str], tuple[np.ndarray, float, str | None]]:
        if file not in self._loaded:
            while len(self._loaded) >= _PARTS_IN_MEMORY:
                self._loaded.popitem(last=False)
            self._loaded[file] = _read_rows(self.paths[file])
        self._loaded.move_to_end(file)
        return self._loaded[file]


def short_keys(keys: Sequence[str]) -> np.ndarray:
    """Return (n,) uint64: the first 64 bits of hexadecimal digests."""
    return np.array([int(key[:16], 16) for key in keys], dtype=np.uint64)


def _read_rows(path: Path) -> dict[tuple[str, str], tuple[np.ndarray, float, str | None]]:
    """Return the ok rows of a reusable file by (text digest, prompt digest)."""
    if path.suffix == ".parquet":
        index, part = read_index(path), read_part(path)
        prompts = index.prompts if index else []
        return {
            (part.keys[i], prompts[k]): (
                part.probabilities[i, k],
                float(part.rating_mass[i, k]),
                part.reasons.get((i, k)),
            )
            for i, k in np.argwhere(part.status == OK).tolist()
        }
    journal = read_journal(path)
    return {
        (row.key, journal.prompts[row.prompt]): (
            np.array(row.probabilities, dtype=np.float32),
            float("nan") if row.rating_mass is None else row.rating_mass,
            row.reason,
        )
        for row in (journal.rows if journal else [])
        if journal is not None and row.probabilities is not None
    }
