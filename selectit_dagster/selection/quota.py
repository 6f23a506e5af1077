"""Quotas: groups of records, and how many each of them gives."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from selectit_dagster.errors import UserError
from selectit_dagster.experiment.section import Line, Section

if TYPE_CHECKING:
    from selectit_dagster.selection.arms.arm import ArmContext

_LANGUAGE_CHARACTERS = 400
_ROUNDS = 50
_LEAST_LANGUAGE = 0.01
NONE, OTHER = "(none)", "(other)"
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class Quota(Section):
    """Which groups the records fall into, and which share of the choice each group has."""

    by: Literal["column", "language", "length", "cluster"] = Field(description="what parts them")
    column: Line | None = Field(None, description="by: column; its name in the input")
    bands: int = Field(4, ge=2, le=100, description="by: length; bands of equally many responses")
    clusters: int = Field(8, ge=2, le=1000, description="by: cluster; k of k-means on embeddings")
    seed: int = Field(1, ge=0, description="by: cluster; seed of k-means")
    rule: Literal["proportional", "equal"] = Field(
        "proportional", description="shares as among the candidates, or the same for each group"
    )
    shares: dict[str, float] | None = Field(
        None, description="shares by group instead of a rule; groups without one get nothing"
    )

    @model_validator(mode="after")
    def _whole(self) -> Quota:
        if (self.by == "column") != (self.column is not None):
            raise ValueError("by: column needs the name of a column, and nothing else takes one")
        if self.shares is not None and (
            not self.shares or min(self.shares.values()) < 0 or not sum(self.shares.values()) > 0
        ):
            raise ValueError("shares are numbers of at least 0, not all of them 0")
        return self

    @property
    def takes_embeddings(self) -> bool:
        """Whether the groups come from embeddings."""
        return self.by == "cluster"


def groups_of(quota: Quota, context: ArmContext, ids: Sequence[str]) -> tuple[list[str], Indices]:
    """Return the groups' names, sorted, and (n,) the group of each record.

    Raises
    ------
    UserError
        When no record has the column.
    """
    if quota.by == "length":
        return _length_bands(context, ids, quota.bands)
    if quota.by == "cluster":
        return _clusters(quota, context, ids)
    if quota.by == "column":
        named = [_field(value, str(quota.column)) for value in _column(context, ids, "raw")]
        if all(name == NONE for name in named):
            raise UserError(
                f"quota: no record has the column {quota.column!r}",
                hint="name a column of the input, or another quota.by",
            )
    else:
        named = _languages(_column(context, ids, "instruction || ' ' || response"))
    names, codes = np.unique(np.array(named, dtype=object).astype(str), return_inverse=True)
    return names.tolist(), codes.astype(np.int64)


def _languages(texts: Sequence[str]) -> list[str]:
    """Return each text's language; those of few texts are one group: mostly guesses."""
    import py3langid

    starts = [text[:_LANGUAGE_CHARACTERS] for text in texts]
    found = [
        str(py3langid.classify(start)[0]) if any(map(str.isalpha, start)) else NONE
        for start in starts
    ]
    counts = Counter(found)
    least = _LEAST_LANGUAGE * len(found)
    return [name if counts[name] >= least else OTHER for name in found]


def _column(context: ArmContext, ids: Sequence[str], column: str) -> list[Any]:
    """Return a column of the records, in the order of ``ids``."""
    found: dict[str, Any] = {}
    query = f"SELECT record_id, {column} FROM {context.texts()}"
    for batch in context.work.batches(query):
        found.update(zip(*(c.to_pylist() for c in batch.columns), strict=True))
    return [found[name] for name in ids]


def _field(raw: bytes, column: str) -> str:
    """Return one field of a record as it was read."""
    import orjson

    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError:  # a row of CSV
        return NONE
    value = record.get(column) if isinstance(record, dict) else None
    return NONE if value is None else str(value)


def _length_bands(context: ArmContext, ids: Sequence[str], bands: int) -> tuple[list[str], Indices]:
    lengths = np.array([len(text) for text in _column(context, ids, "response")], np.int64)
    edges = np.unique(np.quantile(lengths, np.arange(1, bands) / bands, method="lower"))
    codes = np.searchsorted(edges, lengths, side="left").astype(np.int64)
    lows = [0, *(int(edge) + 1 for edge in edges)]
    names = [f"{low:,} to {int(high):,} characters" for low, high in zip(lows, edges, strict=False)]
    return [*names, f"from {lows[-1]:,} characters"], codes


def _clusters(quota: Quota, context: ArmContext, ids: Sequence[str]) -> tuple[list[str], Indices]:
    from selectit_dagster.selection.diversity import normalised

    embeddings = rows_of(context, ids)
    unit = normalised(embeddings - embeddings.mean(axis=0, keepdims=True)).astype(np.float64)
    codes = k_means(unit, quota.clusters, quota.seed)
    return [f"cluster {number + 1}" for number in range(quota.clusters)], codes


def rows_of(context: ArmContext, ids: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the embeddings of the records, in the order of ``ids``."""
    import pyarrow.parquet as pq

    path, embeddings = context.passes.embeddings()
    names = pq.read_table(path, columns=["record_id"]).column(0).to_pylist()
    row = {name: index for index, name in enumerate(names)}
    return embeddings[[row[name] for name in ids]]


def k_means(rows: Floats, clusters: int, seed: int) -> Indices:
    """Return (n,) the cluster of each row: Lloyd's rounds from a seeded k-means++ start."""
    from scipy.cluster.vq import kmeans2

    with warnings.catch_warnings():
        # clusters without a row, and rows that are all equal
        warnings.simplefilter("ignore")
        draw, most = np.random.default_rng(seed), min(clusters, len(rows))
        _, codes = kmeans2(rows, most, iter=_ROUNDS, minit="++", seed=draw)
    return np.asarray(codes, np.int64)


def apportion(budget: float, available: Floats, shares: Floats, *, whole: bool) -> Floats:
    """Return (G,) what each group gives of ``budget``, at most what it has.

    A group that is too small gives all it has, and its rest goes to the others in proportion
    to their shares; what no group with a share has is not given. ``whole`` rounds to whole
    records by the largest remainders, of equals to the first group.
    """
    given = np.zeros(len(shares))
    open_ = (shares > 0) & (available > 0)
    while open_.any():
        rest = budget - given[~open_].sum()
        asked = np.where(open_, rest * shares / shares[open_].sum(), given)
        full = open_ & (asked >= available)
        given = np.where(full, available, asked)
        if not full.any():
            break
        open_ &= ~full
    if not whole:
        return given
    floor = np.floor(given + 1e-9)
    spare = round(min(budget, given.sum()) - floor.sum())
    order = np.argsort(-(given - floor), kind="stable")
    room = [index for index in order if floor[index] < available[index] and shares[index] > 0]
    floor[room[:spare]] += 1
    return floor


def shares_of(quota: Quota, names: Sequence[str], available: Floats) -> Floats:
    """Return (G,) shares of the groups by the quota's rule.

    Raises
    ------
    UserError
        When a share is given for a group that does not exist.
    """
    if quota.shares is not None:
        if unknown := sorted(set(quota.shares) - set(names)):
            raise UserError(
                f"quota: there is no group {unknown[0]!r}", hint=f"groups are {', '.join(names)}"
            )
        return np.array([quota.shares.get(name, 0.0) for name in names])
    return np.where(available > 0, 1.0, 0.0) if quota.rule == "equal" else available
