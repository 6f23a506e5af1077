"""Scoring on Ray: the local engine's plan, rated by a pool of actors.

The plan is made as for the local engine: chunks of records, each of which becomes one part.
What is to do is streamed through the cluster
(see :mod:`~selectit_dagster.rating.ray_stream`).
This process enters what comes back into the journals and writes the parts, so the nodes need
no common disk, and no part is ever written twice.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selectit_dagster.errors import TransientError
from selectit_dagster.inference.backends.protocol import TokenBatch
from selectit_dagster.inference.ray_cluster import Cluster, connected
from selectit_dagster.rating.length_batches import PlannedBatch
from selectit_dagster.rating.ray_backend import RayBackend
from selectit_dagster.rating.ray_serialization import unpack_error, unpack_ratings
from selectit_dagster.rating.ray_stream import rated_groups
from selectit_dagster.rating.ray_workers import pack_mask, versions
from selectit_dagster.rating.score_journal import journal_name
from selectit_dagster.rating.score_store import PENDING
from selectit_dagster.rating.scoring_run import Run
from selectit_dagster.rating.shards import ChunkReader, ChunkWork, Tokenised, read_chunks

_NOTHING = TokenBatch(np.empty(0, np.int32), ())
# Ray needs about half a minute to notice that a node is gone
_AGAIN_SECONDS = 10.0


@dataclass
class RayRun(Run):
    """Rates all chunks of a request on Ray; see the module's docstring."""

    cluster: Cluster | None = None
    groups: int = 0
    groups_twice: int = 0
    actors: set[str] = field(default_factory=set)
    nodes: int = 0
    nodes_lost: int = 0
    streams_again: int = 0
    _counted: set[int] = field(default_factory=set)
    _works: dict[int, ChunkWork] = field(default_factory=dict)
    _seen: dict[int, set[int]] = field(default_factory=dict)
    _halvings: dict[str, int] = field(default_factory=dict)

    def rate_all(self) -> None:
        """Send every chunk that has no part yet through the cluster."""
        self.started = time.monotonic()
        section = self.setup.request.ray
        with connected(section) as self.cluster:
            before = {node["id"] for node in self.cluster.nodes()}
            self.nodes = len(before)
            self._reader = ChunkReader(
                self.setup.request.records_file, self.setup.plan["chunk_records"]
            )
            while not self._passed_through():
                self.streams_again += 1
                time.sleep(_AGAIN_SECONDS)
            self.nodes_lost = len(before - {node["id"] for node in self.cluster.nodes()})
        self.busy_seconds = time.monotonic() - self.started

    def _passed_through(self) -> bool:
        """Stream what is still to do; False when Ray gave up on it and it is worth going on.

        A node that dies takes its actors along, and where no other node has room for them Ray
        gives up on their work. What came back is in the journals; the rest goes through a new
        stream over the nodes that are left.
        """
        todo = list(self.descriptors())
        try:
            if todo:
                # closed at once when an error ends it: the actors are to go
                with contextlib.closing(self._stream(todo)) as rows:
                    for row in rows:
                        self._enter(row)
        except TransientError:
            if self.streams_again >= self.setup.request.ray.retries:
                raise
            for work in self._works.values():
                if work.journal is not None:
                    work.journal.close()
            self._works.clear()
            self._seen.clear()
            return False
        return True

    # --- what there is to do ------------------------------------------------------------------

    def descriptors(self) -> Iterator[dict[str, Any]]:
        """Yield what each chunk without a part is known by, and its rows that are there.

        The descriptors are fixed before anything runs, so that work that Ray does again is the
        same work. In a folder without any rows no record is read for them.
        """
        size = self.setup.plan["chunk_records"]
        there = [*self.folder.path.glob("part-*.parquet"), *self.folder.path.glob("journal-*")]
        if not there and not self.source.paths:
            for index in range(-(-self.setup.records // size)):
                yield {"chunk": index, "reused": None, "resumed": None}
            return
        for chunk in read_chunks(self.setup.request.records_file, size):
            if self._is_stored(chunk):
                if chunk.index not in self._counted:
                    self._counted.add(chunk.index)
                    self._passed(len(chunk.record_ids) * len(self.digests))
                continue
            work = self.maker.open(chunk)
            reused = work.ratings.status != PENDING
            work.resume(self.folder.path / journal_name(chunk.index))
            if not work.pending:
                self._count(work)
                self._save(work)
                continue
            resumed = (work.ratings.status != PENDING) & ~reused
            yield {
                "chunk": chunk.index,
                "reused": pack_mask(reused),
                "resumed": pack_mask(resumed),
            }

    def _passed(self, rows: int) -> None:
        self.counts["resumed"] += rows
        self._advance(rows)

    def _count(self, work: ChunkWork) -> None:
        """Count what was there when the chunk was opened first."""
        if work.index in self._counted:
            return
        self._counted.add(work.index)
        self.counts["reused"] += work.reused
        self.counts["resumed"] += work.resumed
        self._advance(work.ratings.status.size - work.pending)

    def _stream(self, todo: list[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
        backend, request = self.setup.backend, self.setup.request
        if self.cluster is None or not isinstance(backend, RayBackend):
            raise TypeError("a run on Ray needs a cluster and a RayBackend")
        return rated_groups(todo, request, self.setup.plan, backend.spec, self.cluster)

    # --- what comes back ----------------------------------------------------------------------

    def _enter(self, row: dict[str, Any]) -> None:
        """Enter one rated group; write its chunk's part when it was the last."""
        if row["fault"]:
            raise unpack_error(row["fault"])
        self._learn(json.loads(row["facts"]))
        index = row["chunk"]
        self.groups += 1
        if row["group"] in self._seen.setdefault(index, set()):
            self.groups_twice += 1
            return
        self._seen[index].add(row["group"])
        work = self._work(index)
        self._refuse(work, json.loads(row["refused"]))
        targets = np.frombuffer(row["targets"], dtype="<i4").reshape(-1, 2).tolist()
        if targets:
            self._take(work, [(i, k) for i, k in targets], row)
        if not work.pending:
            self._save(work)
            del self._works[index]

    def _work(self, index: int) -> ChunkWork:
        """Return a chunk's work, opened when its first group comes back."""
        if index not in self._works:
            work = self.maker.open(self._reader.read(index))
            work.resume(self.folder.path / journal_name(index))
            self._count(work)
            self._works[index] = work
        return self._works[index]

    def _refuse(self, work: ChunkWork, refused: list[tuple[int, int, int, str]]) -> None:
        work.enter_tokenised(
            Tokenised(
                [],
                {**work.notes, **{(i, k): reason for i, k, _, reason in refused}},
                {(i, k): status for i, k, status, _ in refused},
            )
        )
        self._advance(len(refused))
        self.watch_failures(work)

    def _take(self, work: ChunkWork, targets: list[tuple[int, int]], row: dict[str, Any]) -> None:
        for at, note in json.loads(row["notes"]).items():
            record, prompt = map(int, at.split(","))
            work.notes[record, prompt] = note
        number = self.setup.request.rating.num_ratings
        rated = unpack_ratings(row["ratings"], json.loads(row["reasons"]), number)
        self._journal(work)
        work.take(PlannedBatch(tuple(targets), _NOTHING), rated)
        self.watch_failures(work)
        self.counts["scored"] += len(targets)
        self.tokens += row["tokens"]
        self.positions += row["positions"]
        self._advance(len(targets))

    def _learn(self, said: dict[str, Any]) -> None:
        if isinstance(self.setup.backend, RayBackend):
            self.setup.backend.learn(said)
        self.actors.add(said["actor"])
        self._halvings[said["actor"]] = said["halvings"]
        self.setup.backend.notes.halvings = sum(self._halvings.values())
        other = {name: v for name, v in said["versions"].items() if versions().get(name) != v}
        text = f"other versions on some nodes than here, {other}: last digits may differ"
        if other and text not in self.setup.warnings:
            self.setup.warnings.append(text)

    def details(self, seconds: float) -> dict[str, Any]:
        """Return what a page or a report shows of the run, the cluster included."""
        ray = {
            "nodes": self.nodes,
            "nodes_lost": self.nodes_lost,
            "actors": len(self.actors),
            "groups": self.groups,
            "groups_twice": self.groups_twice,
            "streams_again": self.streams_again,
        }
        return {**super().details(seconds), "ray": ray}
