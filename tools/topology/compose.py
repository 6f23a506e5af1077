"""Read the compose file and the Dockerfile, as far as this project's own use them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<kind>:-|:\?)?")


class MissingVariableError(Exception):
    """A variable that the compose file insists on has no value."""


@dataclass(frozen=True)
class Mount:
    """A volume or a bind mount: where it comes from, where it is seen."""

    source: str
    target: str
    read_only: bool

    @property
    def is_bind(self) -> bool:
        """Whether a path of the host is mounted rather than a named volume."""
        return self.source.startswith((".", "/"))


@dataclass(frozen=True)
class ServiceSpec:
    """One service of the compose file, with its variables filled in."""

    name: str
    raw: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """Command and arguments."""
        return [str(part) for part in self.raw.get("command", [])]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that are set; those without a value are left out, as compose does."""
        found = self.raw.get("environment") or {}
        return {name: str(value) for name, value in found.items() if value is not None}

    @property
    def mounts(self) -> list[Mount]:
        """Volumes and bind mounts."""
        found = []
        for entry in self.raw.get("volumes") or []:
            source, target, *mode = str(entry).split(":")
            found.append(Mount(source, target, mode == ["ro"]))
        return found

    @property
    def needs(self) -> dict[str, str]:
        """The services that must come first, with the condition that they must meet."""
        found = self.raw.get("depends_on") or {}
        return {name: entry["condition"] for name, entry in found.items()}

    @property
    def health(self) -> list[str]:
        """The command that tells whether it is healthy; empty without one."""
        test = (self.raw.get("healthcheck") or {}).get("test") or []
        return [str(part) for part in test[1:]]

    @property
    def restarts(self) -> bool:
        """Whether it is started again after it ended, however it ended."""
        return self.raw.get("restart") in ("always", "unless-stopped")

    @property
    def names(self) -> set[str]:
        """The names under which the others reach it."""
        networks = self.raw.get("networks") or {}
        found = {self.name}
        if isinstance(networks, dict):
            for settings in networks.values():
                found.update((settings or {}).get("aliases", []))
        return found


@dataclass(frozen=True)
class ComposeFile:
    """A compose file whose variables have values."""

    path: Path
    raw: dict[str, Any]
    services: dict[str, ServiceSpec] = field(default_factory=dict)

    def active(self, *profiles: str) -> dict[str, ServiceSpec]:
        """Return the services that run under ``profiles``."""
        return {
            name: service
            for name, service in self.services.items()
            if not service.raw.get("profiles") or set(service.raw["profiles"]) & set(profiles)
        }


def read_compose(path: Path, variables: Mapping[str, str]) -> ComposeFile:
    """Read a compose file.

    Parameters
    ----------
    variables:
        What the ``.env`` file beside it would hold.

    Raises
    ------
    MissingVariableError
        When a variable that is asked for with ``:?`` has no value.
    """
    raw = _filled(yaml.safe_load(path.read_text(encoding="utf-8")), variables)
    services = {}
    for name, entry in raw["services"].items():
        environment = entry.get("environment") or {}
        # a name without a value is passed on when the .env file has it
        passed = {k: variables.get(k) if v is None else v for k, v in environment.items()}
        services[name] = ServiceSpec(name, {**entry, "environment": passed})
    return ComposeFile(path, raw, services)


class _Merging(yaml.SafeLoader):
    """What a further compose file says of the one below it: ``!reset`` takes away."""


_Merging.add_constructor("!reset", lambda loader, node: None)
_Merging.add_constructor("!override", lambda loader, node: loader.construct_mapping(node, True))


def extended(compose: ComposeFile, text: str) -> dict[str, dict[str, Any]]:
    """Return the services of a further file, each an extension of one of ``compose``."""
    found = {}
    for name, entry in yaml.load(text, _Merging)["services"].items():  # noqa: S506 - a safe one
        base = compose.services[entry.pop("extends")["service"]].raw
        found[name] = {k: v for k, v in {**base, **entry}.items() if v is not None}
    return found


def variables_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield each ``${NAME…}`` of a text as name and kind (``:-``, ``:?`` or empty)."""
    for found in _VARIABLE.finditer(text):
        yield found["name"], found["kind"] or ""


def _filled(node: Any, variables: Mapping[str, str]) -> Any:  # noqa: ANN401 - plain data
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    return substitute(node, variables) if isinstance(node, str) else node


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``, also nested."""
    out, position = "", 0
    while found := _VARIABLE.search(text, position):
        end = _closing(text, found.start() + 1)
        rest = text[found.end() : end]
        value = variables.get(found["name"], "")
        if not value and found["kind"] == ":?":
            raise MissingVariableError(f"{found['name']}: {rest}")
        if not value and found["kind"] == ":-":
            value = substitute(rest, variables)
        out += text[position : found.start()] + value
        position = end + 1
    return out + text[position:]


def _closing(text: str, opening: int) -> int:
    depth = 0
    for index in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"no closing brace: {text}")


@dataclass
class Stage:
    """One stage of a Dockerfile: its instructions with those of the stages it builds on."""

    name: str
    base: str
    instructions: list[tuple[str, str]]

    def arguments(self, keyword: str) -> list[str]:
        """Return the arguments of every instruction ``keyword``, in order."""
        return [rest for word, rest in self.instructions if word == keyword]

    @property
    def environment(self) -> dict[str, str]:
        """What ``ENV`` sets; ``$PATH`` stays as it is written."""
        pairs = [shlex.split(rest) for rest in self.arguments("ENV")]
        return dict(pair.split("=", 1) for found in pairs for pair in found)

    @property
    def user(self) -> str:
        """The user that its processes run as; root when nothing is said."""
        return (self.arguments("USER") or ["root"])[-1]

    @property
    def command(self) -> list[str]:
        """The default command."""
        found = self.arguments("CMD")
        return list(json.loads(found[-1])) if found else []

    @property
    def files(self) -> dict[str, str]:
        """Each path in the image with the path in the project that it was copied from."""
        table = {}
        for rest in self.arguments("COPY"):
            *sources, target = rest.split()
            if sources[0].startswith("--from"):
                continue
            for source in sources:
                folder = target.endswith("/")
                table[target + Path(source).name if folder else target] = source
        return table


def read_dockerfile(path: Path) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name; each has its base's instructions first."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines()]
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    defaults: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word:
            continue
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            base = substitute(base, defaults)
            inherited = list(stages[base].instructions) if base in stages else []
            current = stages[name] = Stage(name, base, inherited)
        elif current is None:
            name, _, value = rest.partition("=")
            defaults[name] = value
        else:
            current.instructions.append((word, rest.strip()))
    return stages
