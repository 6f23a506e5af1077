"""Stands in for Ray where no cluster is to be tried: one node, and everything in this process.

It has what this project calls, in the form in which Ray has it. What the project sends through
it is real: planners, raters, probes and training processes run as they are.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def wrapped(kind: type[Exception]) -> Iterator[None]:
    """What a process raises arrives as an error of Ray's, of which only the text is left."""
    try:
        yield
    except Exception as error:
        raise kind(str(error)) from None


class Actor:
    """An object whose methods are called with ``remote``; the answer is there at once."""

    def __init__(self, made: object) -> None:
        self._made = made

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._made, name))


def remote(**_: object) -> Callable[[type], Any]:
    return lambda kind: SimpleNamespace(remote=lambda *given: Actor(kind(*given)))


class Dataset:
    """Rows that flow through the stages one by one."""

    def __init__(self, tables: Iterator[Any]) -> None:
        self._tables = tables

    def map_batches(self, kind: type, *, fn_constructor_args: tuple, **_: object) -> Dataset:
        def mapped() -> Iterator[Any]:
            import pyarrow as pa

            with wrapped(RayError):
                made = kind(*fn_constructor_args)
            for table in self._tables:
                with wrapped(RayTaskError):
                    found = made(table)
                    tables = [found] if isinstance(found, pa.Table) else list(found)
                yield from tables

        return Dataset(mapped())

    def iter_batches(self, **_: object) -> Iterator[Any]:
        return self._tables


def from_items(items: list[dict], **_: object) -> Dataset:
    import pyarrow as pa

    return Dataset(pa.Table.from_pylist([item]) for item in items)


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

        context = SimpleNamespace()
        node = {"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0}}
        return {
            "ray": {
                "init": self.init,
                "shutdown": self.shutdown,
                "is_initialized": lambda: self.connected,
                "get_runtime_context": lambda: SimpleNamespace(get_node_id=lambda: "here"),
                "nodes": lambda: [node],
                "_private": SimpleNamespace(worker=SimpleNamespace(_global_node=None)),
                "remote": remote,
                "get": lambda answer: answer,
                "kill": lambda actor: None,
                "exceptions": SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
            },
            "ray.data": {
                "from_items": from_items,
                "ActorPoolStrategy": settings,
                "DataContext": SimpleNamespace(get_current=lambda: context),
                "ExecutionOptions": settings,
                "ExecutionResources": SimpleNamespace(for_limits=settings),
            },
            "ray.train": dict.fromkeys(("FailureConfig", "RunConfig", "ScalingConfig"), settings),
            "ray.train.torch": {"TorchConfig": settings, "TorchTrainer": self.trainer},
            "ray.train.v2.api.exceptions": {"TrainingFailedError": TrainingFailedError},
        }
