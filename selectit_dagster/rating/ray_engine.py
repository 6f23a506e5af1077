"""Scoring on Ray: the local engine's plan, streamed through a pool of actors.

The plan is made as for the local engine: chunks of records, each of which becomes one part.
Ray Data gets one descriptor per chunk and streams it through two pools of actors: planners on
this node, which read and tokenise, and raters anywhere, of which each holds one model. Ray
decides where and when, holds back the planners while the raters are busy, and runs again what
was lost with a process or a node. This process enters what comes back into the journals and
writes the parts, so the nodes need no common disk, and no part is ever written twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.rating.backend import (
    Backend,
    BackendFacts,
    BackendNotes,
    LogProbabilities,
    TokenBatch,
)
from selectit_dagster.rating.batches import PlannedBatch
from selectit_dagster.rating.chunks import (
    ChunkReader,
    ChunkWork,
    Tokenised,
    read_chunks,
)
from selectit_dagster.rating.ray_workers import Planner, Rater, RaterSpec, pack_mask, versions
from selectit_dagster.rating.run import Run, journal_name
from selectit_dagster.rating.store import PENDING
from selectit_dagster.rating.wire import unpack_ratings
from selectit_dagster.ray_cluster import Cluster, connected, pool_for

if TYPE_CHECKING:
    from selectit_dagster.experiment import ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest

LOGGER = logging.getLogger("selectit_dagster")
_NOTHING = TokenBatch((), (), ())
_IN_FLIGHT = 2
# Ray needs about half a minute to notice that a node is gone
_AGAIN_SECONDS = 10.0


def model_on_ray(request: ScoringRequest) -> ScoringModel:
    """Return the scoring model as an actor loads it: device and dtype do not depend on this node.

    ``auto`` is float32 on a CPU and bfloat16 on a GPU.
    """
    on_gpu = request.ray.shape(request.model.name).gpus_per_actor > 0
    auto = "bfloat16" if on_gpu else "float32"
    return request.model.model_copy(
        update={
            "device": "cuda" if on_gpu else "cpu",
            "dtype": auto if request.model.dtype == "auto" else request.model.dtype,
        }
    )


@dataclass
class RayBackend:
    """Stands for the models in the actors: what is known of them here, and a probe.

    ``rate`` asks a probe, an actor of its own that lives for the calibration only.
    """

    spec: RaterSpec
    request: ScoringRequest
    notes: BackendNotes = field(default_factory=BackendNotes)
    peak: int = 0
    _facts: BackendFacts | None = None
    _probe: Any = None

    @classmethod
    def of(
        cls,
        request: ScoringRequest,
        rating_ids: tuple[int, ...],
        make: Callable[[], Backend] | None = None,
    ) -> RayBackend:
        """Return the backend of a request; ``make`` replaces the model (tests)."""
        from selectit_dagster.model_identity import model_identity

        shape = request.ray.shape(request.model.name)
        spread = shape.device_map or ("auto" if shape.gpus_per_actor > 1 else None)
        model = model_on_ray(request)
        return cls(
            RaterSpec(
                model,
                tuple(rating_ids),
                request.rating.num_ratings,
                spread,
                model_identity(model),
                make,
            ),
            request,
        )

    @property
    def facts(self) -> BackendFacts:
        """What is recorded about the model; from its configuration until an actor has it."""
        if self._facts is None:
            self._facts = facts_unloaded(self.spec.model)
        return self._facts

    def learn(self, said: dict[str, Any]) -> None:
        """Take over what an actor says about its model."""
        self._facts = BackendFacts(**said["facts"])
        self.notes.way = said["way"]
        self.peak = max(self.peak, said["peak_memory_bytes"])
        for text in said["warnings"]:
            if text not in self.notes.warnings:
                self.notes.warnings.append(text)

    def rate(self, batch: TokenBatch) -> LogProbabilities:
        """Rate a batch in the probe."""
        import ray

        if self._probe is None:
            self._probe = self._start_probe()
        found, error = ray.get(self._probe.rate.remote(batch))
        if error is not None:
            raise UserError(error[0], hint=error[1])
        rated: LogProbabilities = found
        return rated

    def _start_probe(self) -> Any:  # noqa: ANN401 - an actor handle
        import ray

        with connected(self.request.ray) as cluster:
            pool = pool_for(self.request.ray.shape(self.request.model.name), cluster.nodes())
        options = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_concurrency": 8}
        return ray.remote(**options)(Probe).remote(self.spec)

    def close(self) -> None:
        """End the probe, so that its place is free for the pool."""
        if self._probe is not None:
            import ray

            ray.kill(self._probe)
            self._probe = None

    def peak_memory_bytes(self) -> int:
        """Return the most that one actor took."""
        return self.peak


class Probe:
    """One model for the calibration."""

    def __init__(self, spec: RaterSpec) -> None:
        self.error: tuple[str, str] | None = None
        try:
            self.backend = spec.backend()
        except UserError as error:
            self.error = error.message, error.hint

    def rate(self, batch: TokenBatch) -> tuple[LogProbabilities | None, tuple[str, str] | None]:
        """Return a batch's ratings, or message and hint of what the user must mend."""
        return (None if self.error else self.backend.rate(batch)), self.error


def facts_unloaded(reference: ScoringModel) -> BackendFacts:
    """Return the facts that the configuration tells; no weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    from selectit_dagster.model_identity import hub_commit, is_local
    from selectit_dagster.models import load_config
    from selectit_dagster.rating.transformers_backend import usual_batch_tokens

    config = load_config(reference)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(
            config, trust_remote_code=reference.trust_remote_code
        )
    device = "cpu" if reference.device == "cpu" else "cuda:0"
    return BackendFacts(
        parameters=sum(weight.numel() for weight in empty.parameters()),
        dtype=reference.dtype,
        device=device,
        revision=None if is_local(reference) else hub_commit(reference.path, reference.revision),
        batch_tokens=usual_batch_tokens(config, device),
    )


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
            if self._has_part(chunk):
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

    # --- through the cluster ------------------------------------------------------------------

    def _stream(self, todo: list[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
        """Yield the rated groups in the order in which they come."""
        import ray

        dataset = self._dataset(todo)
        try:
            for table in dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                yield from table.to_pylist()
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            raise TransientError(
                f"Ray gave up on a piece of work: {str(error).splitlines()[0][:300]}; what was "
                "rated is kept, run again to go on"
            ) from error

    def _dataset(self, todo: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - a ray.data.Dataset
        from ray.data import ActorPoolStrategy, from_items

        if self.cluster is None or not isinstance(self.setup.backend, RayBackend):
            raise TypeError("a run on Ray needs a cluster and a RayBackend")
        section = self.setup.request.ray
        pool = pool_for(section.shape(self.setup.request.model.name), self.cluster.nodes())
        LOGGER.info(
            "scoring on Ray: %d nodes, %d actors of %d CPUs and %g GPUs, %d shards, dashboard %s",
            self.nodes,
            pool.size,
            pool.cpus,
            pool.gpus,
            len(todo),
            self.cluster.dashboard or "off",
        )
        settle_context(section.ahead_mb)

        def bounded() -> dict[str, Any]:
            # an actor is restarted as often as it must, a piece of work is not: one that kills
            # its process each time would go round for ever
            return {"max_restarts": -1, "max_task_retries": section.retries}

        return (
            from_items(todo, override_num_blocks=len(todo))
            .map_batches(
                Planner,
                fn_constructor_args=(self.setup.request, self.setup.plan),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=min(section.planners, len(todo))),
                num_cpus=0,
                # the records lie on this node's disk
                label_selector={"ray.io/node-id": self.cluster.here},
                ray_remote_args_fn=bounded,
            )
            .map_batches(
                Rater,
                fn_constructor_args=(self.setup.backend.spec,),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=1,
                    max_size=pool.most,
                    initial_size=pool.size,
                    max_tasks_in_flight_per_actor=_IN_FLIGHT,
                ),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
                ray_remote_args_fn=bounded,
            )
        )

    # --- what comes back ----------------------------------------------------------------------

    def _enter(self, row: dict[str, Any]) -> None:
        """Enter one rated group; write its chunk's part when it was the last."""
        said = json.loads(row["facts"])
        if "error" in said:
            message, hint = said["error"]
            raise UserError(message, hint=hint)
        self._learn(said)
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

    def _take(self, work: ChunkWork, targets: list[tuple[int, int]], row: dict[str, Any]) -> None:
        for at, note in json.loads(row["notes"]).items():
            record, prompt = map(int, at.split(","))
            work.notes[record, prompt] = note
        number = self.setup.request.rating.num_ratings
        rated = unpack_ratings(row["ratings"], json.loads(row["reasons"]), number)
        self._journal(work)
        work.take(PlannedBatch(tuple(targets), _NOTHING), rated)
        self.counts["scored"] += len(targets)
        self.tokens += row["tokens"]
        self.positions += row["positions"]
        self._advance(len(targets))

    def _learn(self, said: dict[str, Any]) -> None:
        if isinstance(self.setup.backend, RayBackend):
            self.setup.backend.learn(said)
        self.actors.add(said["actor"])
        self._halvings[said["actor"]] = said["halvings"]
        self.rater.halvings = sum(self._halvings.values())
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


def settle_context(ahead_mb: int) -> None:
    """Set what Ray Data shows (nothing) and how much of the object store it may fill."""
    from ray.data import DataContext, ExecutionOptions, ExecutionResources

    context = DataContext.get_current()
    context.enable_progress_bars = False
    # a block is what an actor gets at a time: each row, one group, is to be one
    context.target_max_block_size = 1
    options = ExecutionOptions()
    options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead_mb << 20)
    context.execution_options = options
    logging.getLogger("ray.data").setLevel(logging.WARNING)
