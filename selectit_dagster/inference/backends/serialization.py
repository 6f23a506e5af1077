"""How batches, ratings and refusals travel between processes: flat arrays, no objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.inference.backends.protocol import TokenBatch
from selectit_dagster.inference.length_batches import PlannedBatch
from selectit_dagster.inference.row_failures import RatedBatch
from selectit_dagster.rating.score_store import Floats

_INT, _FLOAT = np.dtype("<i4"), np.dtype("<f4")


def pack_error(error: UserError) -> str:
    """Return a refusal as JSON; Ray would wrap an exception beyond knowing."""
    return json.dumps([error.message, error.hint, isinstance(error, PassingError)])


def unpack_error(content: str) -> UserError:
    """Return what :func:`pack_error` was given."""
    message, hint, passing = json.loads(content)
    return (PassingError if passing else UserError)(message, hint=hint)


def pack_batches(batches: Sequence[PlannedBatch]) -> bytes:
    """Return batches as one run of little-endian int32.

    First how many batches, rows and prefixes there are; then each batch's rows and prefixes;
    each row's record, prompt and prefix; each prefix's and each suffix's length; then all
    tokens, the prefixes' first.
    """
    rows = [at for batch in batches for at in batch.targets]
    prefixes = [prefix for batch in batches for prefix in batch.tokens.prefixes]
    suffixes = [suffix for batch in batches for suffix in batch.tokens.suffixes]
    sizes = [(len(batch.tokens), len(batch.tokens.prefixes)) for batch in batches]
    pieces = [
        [len(batches), len(rows), len(prefixes)],
        np.array(sizes).ravel(),
        np.array(rows).ravel(),
        [which for batch in batches for which in batch.tokens.prefix_of],
        [len(tokens) for tokens in (*prefixes, *suffixes)],
        *prefixes,
        *suffixes,
    ]
    return np.concatenate([np.asarray(piece, dtype=_INT) for piece in pieces]).tobytes()


def unpack_batches(content: bytes) -> list[PlannedBatch]:
    """Return what :func:`pack_batches` was given."""
    values = np.frombuffer(content, dtype=_INT)
    batches, rows, prefixes = values[:3].tolist()
    ends = np.cumsum([3, 2 * batches, 2 * rows, rows, prefixes + rows])
    sizes, targets, prefix_of, lengths = (values[a:b] for a, b in pairwise(ends))
    tokens = np.split(values[ends[-1] :], np.cumsum(lengths)[:-1])
    heads, tails = iter(tokens[:prefixes]), iter(tokens[prefixes:])
    at, which = iter(targets.reshape(-1, 2).tolist()), iter(prefix_of.tolist())
    return [
        PlannedBatch(
            targets=tuple((record, prompt) for record, prompt in (next(at) for _ in range(count))),
            tokens=TokenBatch(
                prefixes=tuple(next(heads) for _ in range(shared)),
                suffixes=tuple(next(tails) for _ in range(count)),
                prefix_of=tuple(next(which) for _ in range(count)),
            ),
        )
        for count, shared in sizes.reshape(-1, 2).tolist()
    ]


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
