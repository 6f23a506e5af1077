"""One actor of the Ray backend: it holds a model and rates the batches that it is handed."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.manifest import differences, library_versions
from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import (
    Backend,
    BatchScores,
    TokenBatch,
    local_backend,
)
from selectit_dagster.inference.failures import DeviceBrokenError

if TYPE_CHECKING:
    from selectit_dagster.experiment import ScoringModel

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
