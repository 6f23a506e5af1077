"""How batches, ratings and refusals travel between processes: flat arrays, no objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.inference.backends.protocol import TokenBatch
from selectit_dagster.inference.failures import DeviceBrokenError
from selectit_dagster.rating.length_batches import PlannedBatch
from selectit_dagster.rating.rated_batch import RatedBatch
from selectit_dagster.rating.score_store import Floats

_INT, _FLOAT = np.dtype("<i4"), np.dtype("<f4")


def pack_error(error: UserError | DeviceBrokenError) -> str:
    """Return a refusal as JSON; Ray would wrap an exception beyond knowing."""
    if isinstance(error, DeviceBrokenError):
        return json.dumps([str(error), "", "device"])
    kind = "passing" if isinstance(error, PassingError) else "user"
    return json.dumps([error.message, error.hint, kind])


def unpack_error(content: str) -> UserError | DeviceBrokenError:
    """Return what :func:`pack_error` was given."""
    message, hint, kind = json.loads(content)
    if kind == "device":
        return DeviceBrokenError(message)
    return (PassingError if kind == "passing" else UserError)(message, hint=hint)


def pack_batches(batches: Sequence[PlannedBatch]) -> bytes:
    """Return batches as one run of little-endian int32.

    First how many batches there are; then each batch's rows and prefix length; each row's
    record, prompt and suffix length; then all tokens, each batch's prefix before its suffixes.
    """
    sizes = [(len(batch.tokens), len(batch.tokens.prefix)) for batch in batches]
    rows = [
        (*at, len(suffix))
        for batch in batches
        for at, suffix in zip(batch.targets, batch.tokens.suffixes, strict=True)
    ]
    tokens = [t for batch in batches for t in (batch.tokens.prefix, *batch.tokens.suffixes)]
    pieces = [[len(batches)], np.array(sizes).ravel(), np.array(rows).ravel(), *tokens]
    return np.concatenate([np.asarray(piece, dtype=_INT) for piece in pieces]).tobytes()


def unpack_batches(content: bytes) -> list[PlannedBatch]:
    """Return what :func:`pack_batches` was given."""
    values = np.frombuffer(content, dtype=_INT)
    count = int(values[0])
    sizes = values[1 : 1 + 2 * count].reshape(-1, 2).tolist()
    start = 1 + 2 * count
    end = start + 3 * sum(rows for rows, _ in sizes)
    rows, at = iter(values[start:end].reshape(-1, 3).tolist()), end
    batches = []
    for number, prefix in sizes:
        some = [next(rows) for _ in range(number)]
        ends = at + prefix + np.cumsum([0, *(length for *_, length in some)])
        batches.append(
            PlannedBatch(
                targets=tuple((record, prompt) for record, prompt, _ in some),
                tokens=TokenBatch(
                    values[at : at + prefix], tuple(values[a:b] for a, b in pairwise(ends))
                ),
            )
        )
        at = int(ends[-1])
    return batches


def pack_ratings(rated: Sequence[RatedBatch]) -> tuple[bytes, dict[str, str]]:
    """Return (rows, R + 1) distributions and rating mass as bytes, and reasons by row."""
    tables, reasons, offset = [], {}, 0
    for batch in rated:
        tables.append(np.column_stack([batch.probabilities, batch.rating_mass]))
        reasons.update({str(offset + row): text for row, text in batch.reasons.items()})
        offset += len(batch.rating_mass)
    joined = np.concatenate(tables) if tables else np.empty(0)
    return joined.astype(_FLOAT).tobytes(), reasons


def unpack_ratings(content: bytes, reasons: dict[str, str], num_ratings: int) -> RatedBatch:
    """Return the ratings of a whole group as one batch."""
    table: Floats = np.frombuffer(content, dtype=_FLOAT).reshape(-1, num_ratings + 1)
    return RatedBatch(table[:, :-1], table[:, -1], {int(row): r for row, r in reasons.items()})
