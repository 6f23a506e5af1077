"""The Ray backend: batches are rated by a pool of actors, each of which holds one model.

Whoever scores sees one backend that takes many batches at once. An actor that is lost costs the
batches that it had, which go to another; a broken device counts as a lost actor, so it cannot
drain the queue.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import TransientError, UserError, first_line
from selectit_dagster.inference.backends.protocol import (
    Backend,
    BackendFacts,
    BackendNotes,
    BatchScores,
    TokenBatch,
)
from selectit_dagster.inference.backends.ray_worker import (
    ActorSpec,
    Fault,
    RatingActor,
    Said,
    versions,
)
from selectit_dagster.inference.failures import DeviceBrokenError
from selectit_dagster.inference.ray_cluster import Pool, living_nodes, pool_for

if TYPE_CHECKING:
    from selectit_dagster.experiment import RaySection, ScoringModel

LOGGER = logging.getLogger("selectit_dagster")
# how long a batch waits for an actor before the nodes are looked at again
_LOOK_SECONDS = 10.0


def model_on_ray(model: ScoringModel, section: RaySection) -> ScoringModel:
    """Return the scoring model as an actor loads it: device and dtype do not depend on this node.

    ``auto`` is float32 on a CPU and bfloat16 on a GPU.
    """
    on_gpu = section.shape(model.name).gpus_per_actor > 0
    auto = "bfloat16" if on_gpu else "float32"
    return model.model_copy(
        update={
            "device": "cuda" if on_gpu else "cpu",
            "dtype": auto if model.dtype == "auto" else model.dtype,
        }
    )


@dataclass
class Actor:
    """One place in the pool.

    ``greeting`` is the answer that comes once its model is loaded; ``losses`` counts the actors
    that the place lost since the last batch that came back.
    """

    handle: Any
    greeting: Future[Fault | Said]
    losses: int
    ready: bool = False
    lost: bool = False


class ActorPool:
    """Actors of a cluster: each is handed batches when it has room, and replaced when it is lost.

    Parameters
    ----------
    spec:
        The model of each actor.
    section:
        The experiment's ``ray`` section; its cluster is connected.
    """

    def __init__(self, spec: ActorSpec, section: RaySection) -> None:
        self.spec, self.section = spec, section
        self.nodes = living_nodes()
        self.room = room_for(spec.model, section)
        self.lost = 0
        self.given_up = 0
        self.closed = False
        self._lock = threading.Lock()
        self._free: queue.SimpleQueue[Actor | Exception] = queue.SimpleQueue()
        self._handles: list[Any] = []
        LOGGER.info("scoring on Ray: %d nodes, %s", len(self.nodes), self.room)
        for _ in range(self.room.most):
            self._start(losses=0)

    def _start(self, losses: int) -> None:
        import ray

        # its threads only wait: the model's own workers rate
        options = {"num_cpus": self.room.cpus, "num_gpus": self.room.gpus, "max_concurrency": 32}
        handle = ray.remote(**options)(RatingActor).remote(self.spec)
        actor = Actor(handle, handle.hello.remote().future(), losses)
        self._handles.append(handle)
        # called by a thread of Ray's own, from which Ray must not be asked anything
        actor.greeting.add_done_callback(lambda _: self._free.put(actor))

    def take(self) -> Actor:
        """Return an actor that has room for a batch; waits for one.

        Raises
        ------
        TransientError
            When no node has room for an actor any more.
        UserError
            When the actors cannot load the model.
        """
        while True:
            try:
                actor = self._free.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._require_room()
                continue
            if isinstance(actor, Exception):
                self._free.put(actor)  # others wait as well
                raise actor
            if self.closed:
                raise TransientError("the run was ended")
            if not actor.lost and (actor.ready or self._greet(actor)):
                return actor

    def _greet(self, actor: Actor) -> bool:
        """Tell whether an actor's model is loaded; replace the actor where it was lost."""
        import ray

        try:
            said = actor.greeting.result()
        except ray.exceptions.RayError as error:
            self.lose(actor, error)
            return False
        if isinstance(said, Exception):
            self._free.put(said)
            return False
        actor.ready = True
        for _ in range(batches_each(self.room) - 1):
            self._free.put(actor)
        return True

    def give_back(self, actor: Actor) -> None:
        """Take back an actor whose batch came back."""
        actor.losses = 0
        self._free.put(actor)

    def lose(self, actor: Actor, error: BaseException) -> None:
        """Replace a lost actor, unless its place lost too many in a row."""
        import ray

        with self._lock:
            if actor.lost:
                return
            actor.lost, self.lost = True, self.lost + 1
        ray.kill(actor.handle)
        if self.closed:
            return
        if actor.losses < self.section.retries:
            self._start(actor.losses + 1)
            return
        self.given_up += 1
        if self.given_up >= self.room.most:
            self._free.put(gave_up(error))

    def _require_room(self) -> None:
        try:
            room_for(self.spec.model, self.section)
        except UserError as error:
            raise TransientError(f"{error.message}; what was rated is kept") from error

    def close(self) -> None:
        """End all actors; whoever waits for one is told."""
        import ray

        self.closed = True
        self._free.put(TransientError("the run was ended"))
        for handle in self._handles:
            ray.kill(handle)


def room_for(model: ScoringModel, section: RaySection) -> Pool:
    """Return the actors that the cluster's living nodes hold."""
    return pool_for(section.shape(model.name), living_nodes())


def batches_each(room: Pool) -> int:
    """Return the batches by an actor: one more than it rates at once, so none waits for the way."""
    return 2 if room.gpus else min(room.cpus, 8) + 1


def gave_up(error: BaseException) -> TransientError:
    """Return the error of a batch or of a pool that lost too many actors."""
    if isinstance(error, TransientError):
        return error
    return TransientError(
        f"Ray gave up on a piece of work: {first_line(error)}; what was rated is kept, run again "
        "to go on"
    )


class RayBackend:
    """Rates batches in the actors of a cluster; see the module's docstring.

    Parameters
    ----------
    model:
        The scoring model.
    section:
        The experiment's ``ray`` section.
    rating_ids:
        The ids of the R rating tokens.
    make:
        Replaces the model in the actors (tests).
    """

    def __init__(
        self,
        model: ScoringModel,
        section: RaySection,
        rating_ids: Sequence[int],
        make: Callable[[], Backend] | None = None,
    ) -> None:
        from selectit_dagster.inference.model_identity import model_identity

        shape = section.shape(model.name)
        spread = shape.device_map or ("auto" if shape.gpus_per_actor > 1 else None)
        model = model_on_ray(model, section)
        self.section = section
        self.spec = ActorSpec(model, tuple(rating_ids), model_identity(model), spread, make)
        self.notes = BackendNotes()
        self._lock = threading.Lock()
        self._pool: ActorPool | None = None
        self._peak, self._batches_again = 0, 0
        self._halvings: dict[str, int] = {}
        self._facts: BackendFacts | None = None

    @property
    def facts(self) -> BackendFacts:
        """What is recorded about the model; from its configuration until an actor has it."""
        if self._facts is None:
            room = room_for(self.spec.model, self.section)
            workers = room.most * batches_each(room)
            self._facts = replace(facts_unloaded(self.spec.model), workers=workers)
        return self._facts

    def rate(self, batch: TokenBatch) -> BatchScores:
        """Rate a batch in the first actor with room, again where an actor is lost with it.

        Raises
        ------
        TransientError
            When it was lost more often than ``ray.retries``.
        UserError
            What an actor refused.
        """
        import ray

        with self._lock:
            self._pool = self._pool or ActorPool(self.spec, self.section)
        pool, tries = self._pool, 0
        while True:
            actor = pool.take()
            try:
                found, said = ray.get(actor.handle.rate.remote(batch))
                if isinstance(found, DeviceBrokenError):
                    raise found
            except ray.exceptions.RayTaskError:
                pool.give_back(actor)
                raise
            except (ray.exceptions.RayError, DeviceBrokenError) as error:
                pool.lose(actor, error)
                tries += 1
                if tries > self.section.retries:
                    raise gave_up(error) from error
                continue
            pool.give_back(actor)
            self._learn(said, pool, tries)
            scores: BatchScores = found
            return scores

    def _learn(self, said: Said, pool: ActorPool, again: int) -> None:
        """Take over what an actor says of its model, and count what was lost."""
        with self._lock:
            self._facts = replace(said["facts"], workers=self.facts.workers)
            self._peak = max(self._peak, said["peak_memory_bytes"])
            self._halvings[said["actor"]] = said["notes"]["halvings"]
            self._batches_again += again
            other = {name: v for name, v in said["versions"].items() if versions().get(name) != v}
            warnings = list(said["notes"]["warnings"])
            if other:
                warnings.append(
                    f"other versions on some nodes than here, {other}: last digits may differ"
                )
            self.notes.mode = said["notes"]["mode"]
            self.notes.halvings = sum(self._halvings.values())
            self.notes.warnings += [w for w in warnings if w not in self.notes.warnings]
            self.notes.details["ray"] = {
                "nodes": len(pool.nodes),
                "actors": len(self._halvings),
                "actors_lost": pool.lost,
                "batches_again": self._batches_again,
            }

    def close(self) -> None:
        """End the actors; a later batch starts others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def peak_memory_bytes(self) -> int:
        """Return the most that one actor took."""
        return self._peak


def facts_unloaded(reference: ScoringModel) -> BackendFacts:
    """Return the facts that the configuration tells; no weights are read."""
    from selectit_dagster.inference.backends.transformers import usual_batch_tokens
    from selectit_dagster.inference.model_identity import commit_of
    from selectit_dagster.inference.model_loading import load_config, parameters_unloaded

    config = load_config(reference)
    device = "cpu" if reference.device == "cpu" else "cuda:0"
    return BackendFacts(
        parameters=parameters_unloaded(reference),
        dtype=reference.dtype,
        device=device,
        revision=commit_of(reference),
        batch_tokens=usual_batch_tokens(config, device),
    )
