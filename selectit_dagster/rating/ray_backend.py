"""What stands for the models in Ray's actors: how they are loaded, their facts, a probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import (
    Backend,
    BackendFacts,
    BackendNotes,
    BatchScores,
    TokenBatch,
)
from selectit_dagster.inference.ray_cluster import connected, pool_for
from selectit_dagster.rating.ray_serialization import pack_error, unpack_error
from selectit_dagster.rating.ray_workers import RaterSpec

if TYPE_CHECKING:
    from selectit_dagster.experiment import ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest


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
        from selectit_dagster.inference.model_identity import model_identity

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
        self.notes.mode = said["mode"]
        self.peak = max(self.peak, said["peak_memory_bytes"])
        for text in said["warnings"]:
            if text not in self.notes.warnings:
                self.notes.warnings.append(text)

    def rate(self, batch: TokenBatch) -> BatchScores:
        """Rate a batch in the probe."""
        import ray

        if self._probe is None:
            self._probe = self._start_probe()
        found, fault = ray.get(self._probe.rate.remote(batch))
        if fault:
            raise unpack_error(fault)
        rated: BatchScores = found
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
        self.fault = ""
        try:
            self.backend = spec.backend()
        except UserError as error:
            self.fault = pack_error(error)

    def rate(self, batch: TokenBatch) -> tuple[BatchScores | None, str]:
        """Return a batch's ratings, or what the user must mend."""
        return (None if self.fault else self.backend.rate(batch)), self.fault


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
