"""What a kind of inference server is asked and how it answers, and the registry of the kinds."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import LogProbabilities, TokenBatch
from selectit_dagster.registry import SERVERS

UNKNOWN = "unknown"
# the shortest prompt that a server can be tried with
PROBE = TokenBatch(np.array([0], dtype=np.int32), (np.array([1], dtype=np.int32),))


@dataclass(frozen=True)
class EngineFacts:
    """What a server says of itself; all of it is part of the scores' fingerprint.

    ``longest`` is the longest prompt in tokens, None where the server does not say. ``setup``
    is the server's own mark of its whole configuration, where it gives one.
    """

    engine: str
    version: str
    model: str
    longest: int | None = None
    dtype: str = UNKNOWN
    quantization: str = UNKNOWN
    batch_invariant: str = UNKNOWN
    setup: str = UNKNOWN

    def as_json(self) -> dict[str, Any]:
        """Return the facts as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        said = {k: v for k, v in asdict(self).items() if k not in ("engine", "version")}
        return f"{self.engine} {self.version} ({', '.join(f'{k} {v}' for k, v in said.items())})"


class Asking(Protocol):
    """Asks one address, or whichever of several is free, for JSON."""

    def __call__(self, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Return the answer; with ``body`` it is a POST."""
        ...  # pragma: no cover - protocol


def inside(value: Any, *names: str) -> dict[str, Any]:  # noqa: ANN401 - whatever was answered
    """Return the mapping under ``names``, an empty one where there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def told(ask: Asking, path: str) -> dict[str, Any]:
    """Return what a server may tell at a path, nothing where it does not."""
    with contextlib.suppress(UserError):
        return inside(ask(path))
    return {}


class WrongServerError(UserError):
    """The server answers, but cannot do what is asked of it."""


class ServerKind(ABC):
    """One kind of server. A subclass enters itself with :func:`register_server`.

    Attributes
    ----------
    health:
        The path that answers once a launched server is ready.
    """

    health: ClassVar[str] = "/health"

    @abstractmethod
    def facts(self, ask: Asking, model: str | None) -> EngineFacts:
        """Return what the server says of itself, after a probe that it gives what is needed.

        Raises
        ------
        UserError
            When it serves no such model, or cannot return the asked log-probabilities.
        """

    @abstractmethod
    def score(
        self, ask: Asking, model: str, batch: TokenBatch, ids: tuple[int, ...]
    ) -> LogProbabilities:
        """Return the (rows, R) log-probabilities of the tokens ``ids`` after each row."""


register_server = SERVERS.register


def chosen_model(listed: Any, wanted: str | None) -> dict[str, Any]:  # noqa: ANN401 - an answer
    """Return the entry of ``/v1/models`` for a model, or of the only one.

    Raises
    ------
    UserError
        When it is not there, or several are and none is named.
    """
    entries = listed.get("data") if isinstance(listed, dict) else None
    models = [m for m in entries or [] if isinstance(m, dict) and isinstance(m.get("id"), str)]
    names = [m["id"] for m in models]
    found = [m for m in models if wanted is None or m["id"] == wanted]
    if len(found) == 1:
        return found[0]
    if wanted is None:
        raise UserError(
            f"the server serves {len(names)} models: {', '.join(names) or 'none'}",
            hint="name one with server.model",
        )
    raise UserError(
        f"the server has no model {wanted!r}, it serves {', '.join(names) or 'none'}",
        hint="set server.model to one of those, or start the server with this one",
    )


def require_numbers(values: Any, rows: int, ratings: int) -> LogProbabilities:  # noqa: ANN401
    """Return (rows, R) float32 of nested lists; null is NaN, which fails its row alone.

    Raises
    ------
    WrongServerError
        When the shape is another one.
    """
    try:
        found = np.array(values, dtype=np.float32)
    except (TypeError, ValueError):
        found = np.empty(0, dtype=np.float32)
    if found.shape != (rows, ratings):
        raise WrongServerError(
            f"the server answered with numbers of shape {found.shape} for {rows} prompts and "
            f"{ratings} rating tokens",
            hint="this version of the server is not understood: upgrade it, or use another kind",
        )
    return found
