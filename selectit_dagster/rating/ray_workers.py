"""What runs in Ray's processes: the planner that tokenises, the rater that holds a model.

Ray Data makes one object of each class per actor and calls it with tables of a few rows. An
error of the user's travels as a value, because Ray would wrap an exception beyond knowing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.artefacts.manifest import differences, library_versions
from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import Backend, local_backend
from selectit_dagster.inference.failures import DeviceBrokenError
from selectit_dagster.rating.length_batches import PlannedBatch
from selectit_dagster.rating.preparation import chunk_maker, row_maker
from selectit_dagster.rating.rated_batch import RatedBatch
from selectit_dagster.rating.ray_serialization import (
    pack_batches,
    pack_error,
    pack_ratings,
    unpack_batches,
)
from selectit_dagster.rating.score_folder import RowSource
from selectit_dagster.rating.shards import ChunkReader

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.experiment import ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest

# pieces in which a chunk is handed out: what is lost with an actor is at most a few of them
_GROUPS = 16
_VERSIONS = ("torch", "transformers", "tokenizers", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions on which the last digits of a rating depend."""
    return library_versions(*_VERSIONS)


class Planner:
    """Reads, tokenises and plans chunks as the local engine does; yields groups of batches.

    Parameters
    ----------
    request:
        What is rated; the records lie on this node's disk.
    plan:
        The folder's plan: ``batch_tokens`` and ``chunk_records``.
    """

    def __init__(self, request: ScoringRequest, plan: dict[str, Any]) -> None:
        self.fault = ""
        try:
            rows, _ = row_maker(request)
            # which rows are there already is said by the descriptors
            self.maker = chunk_maker(request, rows, plan, RowSource.none())
            self.reader = ChunkReader(request.records_file, plan["chunk_records"])
        except UserError as error:
            self.fault = pack_error(error)

    def __call__(self, chunks: pa.Table) -> Iterator[pa.Table]:
        """Yield one row per group: ``chunk``, ``group``, ``batches``, ``notes``, ``refused``.

        ``fault`` is empty, or what the user must mend.
        """
        empty = {"group": 0, "batches": b"", "notes": "{}", "refused": "[]"}
        for row in chunks.to_pylist():
            fault = self.fault
            if not fault:
                try:
                    yield from self._groups(row["chunk"], row["reused"], row["resumed"])
                except UserError as error:
                    fault = pack_error(error)
            if fault:
                yield one_row(chunk=row["chunk"], **empty, fault=fault)

    def _groups(
        self, index: int, reused: bytes | None, resumed: bytes | None
    ) -> Iterator[pa.Table]:
        texts = self.reader.read(index).texts
        shape = len(texts), len(self.maker.digests)
        wanted = [(i, k) for i, k in np.argwhere(~unpack_mask(reused, shape)).tolist()]
        tokenised = self.maker.tokenise(texts, wanted)
        rated = unpack_mask(resumed, shape)
        left = [b for b in tokenised.batches if not all(rated[at] for at in b.targets)]
        for number, some in enumerate(grouped(left)):
            notes = {
                f"{i},{k}": tokenised.notes[i, k]
                for batch in some
                for i, k in batch.targets
                if (i, k) in tokenised.notes
            }
            refused = [
                [i, k, status, tokenised.notes[i, k]]
                for (i, k), status in (tokenised.refused.items() if number == 0 else ())
            ]
            yield one_row(
                chunk=index,
                group=number,
                batches=pack_batches(some),
                notes=json.dumps(notes),
                refused=json.dumps(refused),
                fault="",
            )


def grouped(batches: Sequence[PlannedBatch]) -> list[list[PlannedBatch]]:
    """Cut batches into at most sixteen runs of about as many token positions; at least one."""
    share = sum(batch.tokens.positions for batch in batches) / _GROUPS
    groups: list[list[PlannedBatch]] = [[]]
    filled = 0
    for batch in batches:
        if groups[-1] and filled >= share:
            groups.append([])
            filled = 0
        groups[-1].append(batch)
        filled += batch.tokens.positions
    return groups


def pack_mask(mask: np.ndarray) -> bytes | None:
    """Return an (n, K) mask as bits, None when nothing is set."""
    return np.packbits(mask).tobytes() if mask.any() else None


def unpack_mask(bits: bytes | None, shape: tuple[int, int]) -> np.ndarray:
    """Return the (n, K) mask that :func:`pack_mask` was given."""
    if bits is None:
        return np.zeros(shape, dtype=bool)
    flat = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=shape[0] * shape[1])
    return flat.reshape(shape).astype(bool)


def one_row(**values: object) -> pa.Table:
    """Return a table of one row; bytes may be long."""
    import pyarrow as pa

    return pa.table({name: _column(value) for name, value in values.items()})


def _column(value: object) -> pa.Array:
    import pyarrow as pa

    kind = {bytes: pa.large_binary(), int: pa.int64()}.get(type(value), pa.large_string())
    return pa.array([value], kind)


@dataclass(frozen=True)
class RaterSpec:
    """The model that an actor holds.

    ``identity`` is what the model's content is known by where the run was started; ``make``
    replaces the model (tests).
    """

    model: ScoringModel
    rating_ids: tuple[int, ...]
    num_ratings: int
    device_map: str | None
    identity: dict[str, str]
    make: Callable[[], Backend] | None = None

    def backend(self) -> Backend:
        """Load the model onto this node and return its backend.

        Raises
        ------
        UserError
            When it is not there, is another one, or does not go onto the node's devices.
        """
        if self.make is not None:
            return self.make()
        from selectit_dagster.inference.model_identity import model_identity
        from selectit_dagster.inference.model_loading import load_model

        found = differences(model_identity(self.model), self.identity)
        if found:
            raise UserError(
                f"{self.model.path} on node {platform.node()} is another model than where the "
                f"run was started ({found[0].name} differs)",
                hint="put the same files under the same path on every node, or name a hub model "
                "with its revision",
            )
        return local_backend(load_model(self.model, device_map=self.device_map), self.rating_ids)


class Rater:
    """Holds one model and rates groups of batches.

    Ray calls it from several threads at once: while the last batches of a group run, the next
    group's are there, so no worker waits for a group's end. However many groups there are,
    ``workers`` batches run at a time.
    """

    def __init__(self, spec: RaterSpec) -> None:
        self.fault = ""
        try:
            backend = spec.backend()
        except UserError as error:
            self.fault = pack_error(error)
            return
        self.backend = backend
        self.pool = ThreadPoolExecutor(backend.facts.workers, "rate")

    def __call__(self, groups: pa.Table) -> pa.Table:
        """Return the groups with ``ratings`` and ``reasons`` in place of the tokens."""
        import pyarrow as pa

        return pa.concat_tables([self._group(row) for row in groups.to_pylist()])

    def _group(self, row: dict[str, Any]) -> pa.Table:
        same = {name: row[name] for name in ("chunk", "group", "notes", "refused")}
        empty = {"targets": b"", "ratings": b"", "reasons": "{}", "tokens": 0, "positions": 0}
        if fault := self.fault or row["fault"]:
            return one_row(**same, **empty, facts="{}", fault=fault)
        batches = unpack_batches(row["batches"])
        try:
            found = list(self.pool.map(self.backend.rate, [batch.tokens for batch in batches]))
        except DeviceBrokenError as error:
            fault = pack_error(error)
            return one_row(**same, **empty, facts="{}", fault=fault)
        rated = [RatedBatch.of(scores) for scores in found]
        ratings, reasons = pack_ratings(rated)
        targets = np.array([at for batch in batches for at in batch.targets], dtype="<i4")
        return one_row(
            **same,
            targets=targets.tobytes(),
            ratings=ratings,
            reasons=json.dumps(reasons),
            tokens=sum(batch.tokens.tokens for batch in batches),
            positions=sum(batch.tokens.positions for batch in batches),
            facts=json.dumps(self._facts()),
            fault="",
        )

    def _facts(self) -> dict[str, Any]:
        backend = self.backend
        return {
            "facts": dataclasses.asdict(backend.facts),
            "mode": backend.notes.mode,
            "warnings": list(backend.notes.warnings),
            "peak_memory_bytes": backend.peak_memory_bytes(),
            "halvings": backend.notes.halvings,
            "actor": f"{platform.node()}:{os.getpid()}",
            "versions": versions(),
        }
