"""The kinds of one thing (arms, benchmarks, servers): one file each, that enters itself."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from selectit_dagster.errors import UserError, first_line

K = TypeVar("K", bound="type[Any]")
N = TypeVar("N", bound="type[Any]")


class Registry(Generic[K]):
    """The classes that entered themselves by name, here and from other packages.

    Parameters
    ----------
    noun:
        What one of them is called in a message, as *benchmark*.
    package:
        The package whose modules are imported before the kinds are listed.
    entry_points:
        The group of entry points through which other packages add theirs.
    modules:
        The modules of the package that hold kinds; empty for all of them.
    """

    def __init__(
        self, noun: str, package: str, entry_points: str, modules: tuple[str, ...] = ()
    ) -> None:
        self.noun, self.package = noun, package
        self.entry_points, self.modules = entry_points, modules
        self._kinds: dict[str, K] = {}
        self._loaded = False

    def register(self, *names: str) -> Callable[[N], N]:
        """Enter a class under its name, and further names of it.

        Raises
        ------
        UserError
            When another module has taken the name.
        """

        def enter(kind: N) -> N:
            for name in names:
                taken: Any = self._kinds.get(name)
                if taken is not None and taken.__module__ != kind.__module__:
                    raise UserError(
                        f"two {self.noun}s are called {name!r}: "
                        f"in {taken.__module__} and {kind.__module__}",
                        hint="take one of the packages out of the environment",
                    )
                self._kinds[name] = kind  # type: ignore[assignment]
            return kind

        return enter

    def kinds(self) -> dict[str, K]:
        """Return every class by its name; the first call imports them.

        Raises
        ------
        UserError
            When another package's cannot be loaded.
        """
        if not self._loaded:
            self._load()
            self._loaded = True
        return dict(self._kinds)

    def named(self, name: object, field: str) -> K:
        """Return the class of a name that a field of the experiment file gives.

        Raises
        ------
        ValueError
            When there is none: it lists those that there are.
        """
        known = self.kinds()
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"found {field} {name!r}, expected: one of {', '.join(sorted(known))}")
        return known[name]

    def _load(self) -> None:
        names = self.modules or [
            module.name
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        ]
        for name in names:
            importlib.import_module(f"{self.package}.{name}")
        for entry in importlib.metadata.entry_points(group=self.entry_points):
            try:
                entry.load()
            except Exception as error:
                raise UserError(
                    f"the {self.noun} {entry.name!r} of another package cannot be loaded: "
                    f"{first_line(error)}",
                    hint=f"mend or take out the package that brings {entry.value}",
                ) from error


# The kinds that an experiment file may name. They stand below every room, so that the file can
# be checked without an import of the rooms in which they are made.
ARMS: Registry[Any] = Registry("arm", "selectit_dagster.selection.arms", "selectit_dagster.arms")
BENCHMARKS: Registry[Any] = Registry(
    "benchmark", "selectit_dagster.evaluation.tasks", "selectit_dagster.benchmarks"
)
SERVERS: Registry[Any] = Registry(
    "server kind",
    "selectit_dagster.inference.backends",
    "selectit_dagster.servers",
    # the package's other modules are no kinds
    modules=("server_vllm", "server_sglang"),
)
