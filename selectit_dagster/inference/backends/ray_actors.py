"""The actors of the Ray backend, each of which holds a model, and the pool that replaces them."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import platform
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.manifest import differences, library_versions
from selectit_dagster.errors import TransientError, UserError, first_line
from selectit_dagster.inference.backends.protocol import (
    Backend,
    BatchScores,
    TokenBatch,
    local_backend,
)
from selectit_dagster.inference.failures import DeviceBrokenError
from selectit_dagster.inference.ray_cluster import Pool, living_nodes, pool_for

if TYPE_CHECKING:
    from selectit_dagster.experiment import RaySection, ScoringModel

LOGGER = logging.getLogger("selectit_dagster")
# how long a batch waits for an actor before the nodes are looked at again
_LOOK_SECONDS = 10.0

Said = dict[str, Any]
Fault = UserError | DeviceBrokenError


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions on which the last digits of a rating depend."""
    return library_versions("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class ActorSpec:
    """The model that an actor holds.

    ``identity`` is what the model's content is known by where the run was started; ``make``
    replaces the model (tests).
    """

    model: ScoringModel
    rating_ids: tuple[int, ...]
    identity: dict[str, str]
    device_map: str | None = None
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


class RatingActor:
    """Holds one model; Ray calls it from several threads, and ``workers`` batches run at a time.

    What the user must mend, and a broken device, are answers: Ray would wrap an exception.
    """

    def __init__(self, spec: ActorSpec) -> None:
        self.fault: Fault | None = None
        try:
            self.backend = spec.backend()
        except UserError as error:
            self.fault = error
            return
        self.pool = ThreadPoolExecutor(self.backend.facts.workers, "rate")

    def hello(self) -> Fault | Said:
        """Return the model's facts, once it is loaded."""
        return self.fault or self._said()

    def rate(self, batch: TokenBatch) -> tuple[Fault | BatchScores, Said]:
        """Return a batch's ratings, and what is to be said of the model."""
        try:
            return self.pool.submit(self.backend.rate, batch).result(), self._said()
        except DeviceBrokenError as error:
            return error, {}

    def _said(self) -> Said:
        backend = self.backend
        return {
            "facts": backend.facts,
            "notes": dataclasses.asdict(backend.notes),
            "peak_memory_bytes": backend.peak_memory_bytes(),
            "actor": f"{platform.node()}:{os.getpid()}",
            "versions": versions(),
        }


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
