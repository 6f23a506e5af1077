"""The Ray backend: batches are rated by a pool of actors, each of which holds one model.

Whoever scores sees one backend that takes many batches at once. An actor that is lost costs the
batches that it had, which go to another; a broken device counts as a lost actor, so it cannot
drain the queue.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from selectit_dagster.inference.backends.protocol import (
    Backend,
    BackendFacts,
    BackendNotes,
    BatchScores,
    TokenBatch,
)
from selectit_dagster.inference.backends.ray_actors import (
    ActorPool,
    ActorSpec,
    Said,
    batches_each,
    gave_up,
    room_for,
    versions,
)
from selectit_dagster.inference.failures import DeviceBrokenError

if TYPE_CHECKING:
    from selectit_dagster.experiment import RaySection, ScoringModel


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
    from selectit_dagster.inference.batching import usual_batch_tokens
    from selectit_dagster.inference.model_identity import commit_of
    from selectit_dagster.inference.model_loading import load_config, parameters_unloaded

    config = load_config(reference)
    device = "cpu" if reference.device == "cpu" else "cuda:0"
    return BackendFacts(
        parameters=parameters_unloaded(reference),
        dtype=reference.dtype,
        device=device,
        revision=commit_of(reference),
        batch_tokens=usual_batch_tokens(config, device, reference.dtype),
    )
