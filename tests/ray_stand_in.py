"""Stands in for Ray where no cluster is to be tried: one node, and everything in this process.

It has what this project calls, in the form in which Ray has it. What the project sends through
it is real: actors and training processes run as they are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from selectit_dagster.inference import ray_cluster


class RayError(Exception):
    """Ray's own failures."""


class RayTaskError(RayError):
    """What a task raised."""


class TrainingFailedError(Exception):
    """What ``TorchTrainer.fit`` raises, with the failures by rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__(f"Training failed due to worker errors:\n{failures}")
        self.worker_failures = failures


class Answer:
    """What a call of an actor gives; what it raised arrives as an error of Ray's."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._future: Future[Any] = Future()
        try:
            self._future.set_result(call())
        except RayError as error:
            self._future.set_exception(error)
        except Exception as error:
            self._future.set_exception(RayTaskError(str(error)))

    def future(self) -> Future[Any]:
        return self._future


class Actor:
    """An object whose methods are called with ``remote``; the answer is there at once.

    As in Ray, what its making raised is raised by every call.
    """

    def __init__(self, make: Callable[[], object]) -> None:
        self._made = Answer(make).future()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(
            remote=lambda *given: Answer(lambda: getattr(self._made.result(), name)(*given))
        )


def remote(**_: object) -> Callable[[type], Any]:
    return lambda kind: SimpleNamespace(remote=lambda *given: Actor(lambda: kind(*given)))


class RayHere:
    """The stand-in, for a test to alter.

    ``failure`` is raised when somebody connects; ``on_node`` changes what a training process
    is given, as another node's disk would.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.on_node: Callable[[dict[str, Any]], dict[str, Any]] = lambda settings: settings
        self.connected = False

    def init(self, **_: object) -> None:
        if self.failure is not None:
            raise self.failure
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False

    def trainer(self, process: Callable, *, train_loop_config: dict, scaling_config: Any, **_: Any):
        def fit() -> None:
            failures: dict[int, Exception] = {}
            for rank in range(scaling_config.num_workers):
                os.environ["RANK"] = str(rank)
                try:
                    process(self.on_node(train_loop_config))
                except Exception as error:
                    failures[rank] = error
            if failures:
                raise TrainingFailedError(failures)

        return SimpleNamespace(fit=fit)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the stand-in where ``import ray`` finds it; all of it ends with the test."""
        monkeypatch.setenv("RANK", "0")
        for name in (*ray_cluster._ENVIRONMENT, *ray_cluster._LOOPBACK):
            monkeypatch.setenv(name, "0")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        for name, members in self._modules().items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)

    def _modules(self) -> dict[str, dict[str, Any]]:
        def settings(**given: Any) -> SimpleNamespace:
            return SimpleNamespace(**given)

        node = {"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0}}
        return {
            "ray": {
                "init": self.init,
                "shutdown": self.shutdown,
                "is_initialized": lambda: self.connected,
                "nodes": lambda: [node],
                "remote": remote,
                "get": lambda answer: answer.future().result(),
                "kill": lambda actor: None,
                "exceptions": SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
            },
            "ray.train": dict.fromkeys(("FailureConfig", "RunConfig", "ScalingConfig"), settings),
            "ray.train.torch": {"TorchConfig": settings, "TorchTrainer": self.trainer},
            "ray.train.v2.api.exceptions": {"TrainingFailedError": TrainingFailedError},
        }
