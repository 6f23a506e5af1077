"""Stored rating distributions: the columns, their writer and their readers.

A score folder holds ``part-*.parquet`` with one row per record and rating prompt, records
in the dataset's order and each record's prompts side by side. Each part's footer names what
its rows are known by when they are reused: the digest of the engine's settings, the prompts'
digests and one digest per record's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.artefacts.manifest import require_manifest
from selectit_dagster.errors import ArtefactError

if TYPE_CHECKING:
    import pyarrow as pa

# a record has the worst status of its prompts
STATUSES = ("ok", "too_long", "failed")
OK, TOO_LONG, FAILED = range(3)
PENDING = 255
# how the reason begins of a row that adaptive rating leaves out
NOT_ASKED = "not asked"
_ENGINE, _PROMPTS = b"selectit.engine", b"selectit.prompts"
_RECORDS, _RATINGS = b"selectit.records", b"selectit.ratings"
_KEY = re.compile(r"[0-9a-f]{16,128}")

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
_REMOVE = "remove this file and start again: its records are rated anew"


@dataclass
class Ratings:
    """The rating distributions of n records under K prompts.

    Attributes
    ----------
    record_ids:
        (n,) the records' names.
    keys:
        (n,) digests of the rated texts, hexadecimal.
    probabilities:
        (n, K, R) float32, NaN where the status is not ok.
    rating_mass:
        (n, K) float32, the rating tokens' share of the whole vocabulary's probability.
    status:
        (n, K) uint8, indices into :data:`STATUSES`, :data:`PENDING` before that.
    reasons:
        Why a row is not ok, or how it was cut, by (record, prompt).
    """

    record_ids: list[str]
    keys: list[str]
    probabilities: Floats
    rating_mass: Floats
    status: Codes
    reasons: dict[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def empty(cls, record_ids: list[str], keys: list[str], prompts: int, ratings: int) -> Ratings:
        """Return ratings of which all rows are still to be made."""
        shape = (len(record_ids), prompts)
        return cls(
            record_ids,
            keys,
            np.full((*shape, ratings), np.nan, dtype=np.float32),
            np.full(shape, np.nan, dtype=np.float32),
            np.full(shape, PENDING, dtype=np.uint8),
        )

    @property
    def record_status(self) -> Codes:
        """(n,) the worst status of each record's prompts."""
        return self.status.max(axis=1)


def score_schema(num_ratings: int, *, with_nulls: bool = False) -> pa.Schema:
    """Return the columns of a score file.

    Arrow cannot read fixed-size lists with nulls back from Parquet, so the distributions of
    a part in which some are missing are lists of any size; in Parquet both are the same.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("record_id", pa.string(), nullable=False),
            pa.field("prompt_index", pa.int16(), nullable=False),
            pa.field("probabilities", pa.list_(pa.float32(), -1 if with_nulls else num_ratings)),
            pa.field("rating_mass", pa.float32()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("reason", pa.string()),
        ]
    )


def part_name(index: int) -> str:
    """Return the name of the part with that number; names sort as numbers do."""
    return f"part-{index:06d}.parquet"


def write_part(path: Path, ratings: Ratings, engine: str, prompts: list[str]) -> None:
    """Write finished ratings as one part, atomically.

    Parameters
    ----------
    path:
        The part's file.
    ratings:
        No row may be pending.
    engine:
        Digest of the settings under which rows are comparable.
    prompts:
        (K,) digests of the rating prompts.
    """
    import pyarrow as pa

    count, asked, num_ratings = ratings.probabilities.shape
    codes = ratings.status.reshape(-1)
    if (codes == PENDING).any():
        raise ValueError(f"{int((codes == PENDING).sum())} rows of {path} are not rated yet")
    missing = codes != OK
    flat = ratings.probabilities.reshape(-1, num_ratings)[~missing].reshape(-1)
    reasons: list[str | None] = [None] * codes.size
    for (record, prompt), reason in ratings.reasons.items():
        reasons[record * asked + prompt] = reason
    schema = score_schema(num_ratings, with_nulls=bool(missing.any())).with_metadata(
        {
            _RATINGS: str(num_ratings).encode(),
            _ENGINE: engine.encode(),
            _PROMPTS: json.dumps(prompts).encode(),
            _RECORDS: json.dumps(ratings.keys).encode(),
        }
    )
    table = pa.table(
        [
            pa.array(np.repeat(np.array(ratings.record_ids, dtype=object), asked), pa.string()),
            pa.array(np.tile(np.arange(asked, dtype=np.int16), count)),
            _lists(flat, num_ratings, missing),
            pa.array(ratings.rating_mass.reshape(-1), mask=np.isnan(ratings.rating_mass.ravel())),
            pa.array(np.array(STATUSES, dtype=object)[codes], pa.string()),
            pa.array(reasons, pa.string()),
        ],
        schema=schema,
    )
    write_parquet(path, table)


def _lists(flat: Floats, size: int, missing: npt.NDArray[np.bool_]) -> pa.Array:
    """Return lists of ``size`` values, null where ``missing``; ``flat`` holds the others."""
    import pyarrow as pa

    if not missing.any():
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), size)
    offsets = np.concatenate([[0], np.cumsum(~missing) * size]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(flat), mask=pa.array(missing, pa.bool_())
    )


@dataclass(frozen=True)
class PartIndex:
    """What a part's rows are known by."""

    engine: str
    prompts: list[str]
    keys: list[str]
    ratings: int


def read_index(path: Path) -> PartIndex | None:
    """Return a part's footer, None when it is no part of this project or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, ValueError, pa.ArrowException):
        return None
    if not {_ENGINE, _PROMPTS, _RECORDS, _RATINGS} <= set(metadata):
        return None
    try:
        index = PartIndex(
            metadata[_ENGINE].decode(),
            json.loads(metadata[_PROMPTS]),
            json.loads(metadata[_RECORDS]),
            int(metadata[_RATINGS]),
        )
    except (ValueError, RecursionError):
        return None
    lists = (index.prompts, index.keys)
    if any(not isinstance(names, list) for names in lists) or index.ratings < 1:
        return None
    if not all(isinstance(name, str) for names in lists for name in names):
        return None
    return index if all(map(_KEY.fullmatch, index.keys)) else None


def read_part(path: Path) -> Ratings:
    """Return one part's ratings.

    Raises
    ------
    ArtefactError
        When the file is not a part that this project wrote.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = read_index(path)
    if index is None:
        raise ArtefactError(f"{path} is no score file of this project", hint=_REMOVE)
    try:
        table = pq.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtefactError(f"{path} cannot be read: {error}", hint=_REMOVE) from error
    asked = len(index.prompts)
    if table.num_rows != asked * len(index.keys):
        raise ArtefactError(f"{path} does not have {asked} rows per record", hint=_REMOVE)
    try:
        return _decode(table, index)
    except (KeyError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ArtefactError(
            f"{path} does not hold what a score file holds: {error}", hint=_REMOVE
        ) from error


def _decode(table: pa.Table, index: PartIndex) -> Ratings:
    asked, count = len(index.prompts), len(index.keys)
    column = table.column("probabilities").combine_chunks()
    num_ratings = index.ratings
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    values = np.full((table.num_rows, num_ratings), np.nan, dtype=np.float32)
    values[valid] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, num_ratings)
    codes = {name: code for code, name in enumerate(STATUSES)}
    status = np.array([codes[name] for name in table.column("status").to_pylist()], np.uint8)
    reasons = {
        divmod(row, asked): reason
        for row, reason in enumerate(table.column("reason").to_pylist())
        if reason is not None
    }
    mass = table.column("rating_mass").to_numpy().astype(np.float32)
    return Ratings(
        table.column("record_id").to_pylist()[::asked],
        index.keys,
        values.reshape(count, asked, num_ratings),
        mass.reshape(count, asked),
        status.reshape(count, asked),
        reasons,
    )


def iter_scores(folder: Path, num_prompts: int) -> Iterator[Ratings]:
    """Yield a finished score folder part by part, in the dataset's order.

    Memory is bounded by one part. Only the first ``num_prompts`` prompts are kept, so the
    status of a record is the worst under those.

    Raises
    ------
    ArtefactError
        When the folder is incomplete, or holds fewer prompts.
    """
    manifest = require_manifest(folder, made_by="the uncertainty scores")
    stored = manifest.counts["prompts"]
    if num_prompts > stored:
        raise ArtefactError(
            f"{num_prompts} rating prompts are asked for, {folder} holds {stored}",
            hint=f"use at most {stored}, or score again",
        )
    for name in sorted(name for name in manifest.files if name.startswith("part-")):
        part = read_part(folder / name)
        yield Ratings(
            part.record_ids,
            part.keys,
            part.probabilities[:, :num_prompts],
            part.rating_mass[:, :num_prompts],
            part.status[:, :num_prompts],
            {at: reason for at, reason in part.reasons.items() if at[1] < num_prompts},
        )


def read_scores(folder: Path, num_prompts: int) -> Ratings:
    """Return a finished score folder whole: (N, K, R) probabilities in memory.

    For datasets that fit; :func:`iter_scores` streams.
    """
    parts = list(iter_scores(folder, num_prompts))
    if not parts:
        raise ArtefactError(
            f"{folder} lists no part-*.parquet", hint=f"remove {folder} and score again"
        )
    reasons: dict[tuple[int, int], str] = {}
    offset = 0
    for part in parts:
        reasons.update({(i + offset, k): text for (i, k), text in part.reasons.items()})
        offset += len(part.record_ids)
    return Ratings(
        [name for part in parts for name in part.record_ids],
        [key for part in parts for key in part.keys],
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.rating_mass for part in parts]),
        np.concatenate([part.status for part in parts]),
        reasons,
    )
