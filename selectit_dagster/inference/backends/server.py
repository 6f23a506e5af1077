"""The backend for a model behind a vLLM or SGLang server: facts asked first, then rows sent.

The model's ``path`` gives tokenizer, identity and parameter count; its weights are not loaded
here. Every request carries rows of one rating prompt, so that the server's prefix cache holds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.experiment import ServedModel, ServerSection
from selectit_dagster.inference.backends.protocol import (
    BackendFacts,
    BackendNotes,
    BatchScores,
    LogProbabilities,
    TokenBatch,
)
from selectit_dagster.inference.backends.server_client import (
    ServerClient,
    same_for_all,
)
from selectit_dagster.inference.backends.server_kind import (
    PROBE,
    UNKNOWN,
    EngineFacts,
    WrongServerError,
)
from selectit_dagster.inference.failures import MODEL_FAILED, RowRetries
from selectit_dagster.registry import SERVERS

Served = TypeVar("Served", bound=ServedModel)

# token positions of a request beyond the shared prefix: some twenty records, so that the
# server's own queue, and not the number of requests, decides what runs together
_BATCH_TOKENS = 4096
_REMEMBERED_SECONDS = 20.0


class ServerBackend:
    """Rates token rows by a server; see the protocol.

    Parameters
    ----------
    model:
        The scoring model or judge, its ``server`` with addresses.
    ids:
        The tokens whose log-probabilities are asked for.
    client:
        Replaced by tests.
    """

    def __init__(
        self, model: ServedModel, ids: Sequence[int], client: ServerClient | None = None
    ) -> None:
        section = section_of(model)
        self.ids = tuple(ids)
        self.kind = SERVERS.kinds()[section.kind]()
        self.client = client or ServerClient(section, health=self.kind.health)
        self.engine = checked_facts(model, self.client)
        for url in section.url:
            _named(url, lambda url=url: self.rate_at(url, PROBE))
        self._facts = BackendFacts(
            parameters=_parameters(model),
            dtype=self.engine.dtype,
            device=f"{self.engine.engine} {self.engine.version}",
            revision=_revision(model),
            workers=section.in_flight * len(section.url),
            batch_tokens=_BATCH_TOKENS,
        )
        self._notes = BackendNotes(mode=section.kind)
        self._retries = RowRetries(lambda: self._rate(PROBE))
        if self.engine.dtype == UNKNOWN:
            self._notes.warnings.append(
                "the server does not say its dtype and quantisation: set VLLM_SERVER_DEV_MODE=1 "
                "where vLLM starts, or write dtype beside the model"
            )

    @property
    def facts(self) -> BackendFacts:
        """What is recorded about the model."""
        return self._facts

    @property
    def notes(self) -> BackendNotes:
        """The kind of server, and warnings."""
        return self._notes

    def rate(self, batch: TokenBatch) -> BatchScores:
        """Return log-probabilities or failures; see the protocol.

        A row that fails while another one passes is to blame itself: finished scores stay so,
        and need no server to be called finished.
        """
        found = self._retries.score(batch, self._rate, len(self.ids))
        failures = {
            row: f"the server failed{reason.removeprefix(MODEL_FAILED)}"
            for row, reason in found.failures.items()
        }
        return BatchScores(found.log_probabilities, failures)

    def rate_at(self, url: str, batch: TokenBatch) -> LogProbabilities:
        """Return the log-probabilities of one address, for a comparison."""
        return self.kind.score(self.client.at(url), self.engine.model, batch, self.ids)

    def peak_memory_bytes(self) -> int:
        """Return 0: the server's memory is not this machine's to measure."""
        return 0

    def _rate(self, batch: TokenBatch) -> LogProbabilities:
        return self.kind.score(self.client.ask, self.engine.model, batch, self.ids)


def section_of(model: ServedModel) -> ServerSection:
    """Return the server section of a model that has one."""
    if model.server is None:
        raise ValueError(f"{model.path} is behind no server")
    return model.server


def checked_facts(model: ServedModel, client: ServerClient | None = None) -> EngineFacts:
    """Return what all addresses say of themselves; they must say the same.

    A dtype that the file gives stands in for one that the server does not say.

    Raises
    ------
    UserError
        When an address does not answer, lacks the model, cannot return what is needed, or
        runs the model in another dtype than the file asks for.
    """
    section = section_of(model)
    client = client or ServerClient(section)
    kind = SERVERS.kinds()[section.kind]()
    said = [
        _named(url, lambda url=url: kind.facts(client.at(url), section.model))
        for url in section.url
    ]
    same_for_all(section.url, [replace(one, setup=UNKNOWN) for one in said])
    facts: EngineFacts = said[0]
    if model.dtype == "auto" or facts.dtype == model.dtype:
        return facts
    if facts.dtype != UNKNOWN:
        raise UserError(
            f"{section.url[0]} runs {facts.model} in {facts.dtype}, but the file asks for "
            f"dtype {model.dtype}",
            hint="start the server with that dtype, or write the one that it runs",
        )
    return replace(facts, dtype=model.dtype)


def _named(url: str, work: Any) -> Any:  # noqa: ANN401 - what the work returns
    """Do some work at an address; what it cannot do is said with its name."""
    try:
        return work()
    except WrongServerError as error:
        raise WrongServerError(f"{url} is refused: {error.message}", hint=error.hint) from error
    except UserError as error:
        if url not in error.message:
            error.message = f"{url}: {error.message}"
        raise


_SAID: dict[str, tuple[float, dict[str, Any] | None]] = {}


def server_identity(model: ServedModel) -> dict[str, Any]:
    """Return what the fingerprint says of the engine that rates.

    A server that is not there now, or not started yet, may have been any: its field is equal
    to whatever finished scores say of theirs.
    """
    section = section_of(model)
    # addresses are left out: the same server elsewhere gives the same scores
    return {
        "server.kind": section.kind,
        "server.model": section.model,
        "server.launch": list(section.launch) if section.launch else None,
        "server.engine": _remembered(model) or AnyEngine(),
    }


class AnyEngine(dict[str, Any]):
    """What is not asked now: equal to the engine of any stored scores."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        return "a server that does not answer"


def _remembered(model: ServedModel) -> dict[str, Any] | None:
    """Return what the server says, or said a moment ago; None where nothing answers."""
    section = section_of(model)
    if not section.url:
        return None
    known = _SAID.get(_key(model))
    if known is not None and time.monotonic() - known[0] <= _REMEMBERED_SECONDS:
        return known[1]
    with contextlib.suppress(PassingError):
        return _ask_anew(model)
    _SAID[_key(model)] = time.monotonic(), None
    return None


def _ask_anew(model: ServedModel) -> dict[str, Any]:
    said = checked_facts(model).as_json()
    _SAID[_key(model)] = time.monotonic(), said
    return said


def _key(model: ServedModel) -> str:
    return f"{model.dtype} {section_of(model).model_dump_json()}"


@contextlib.contextmanager
def reachable(model: Served, log: Path) -> Iterator[Served]:
    """Yield the model with the address of a server that was just asked what it is.

    The server is started, and ends with the block, where the file says so.

    Raises
    ------
    UserError
        When it does not answer, or not with what is needed.
    """
    section = section_of(model)
    if section.url:
        _ask_anew(model)
        yield model
        return
    from selectit_dagster.inference.backends.server_process import launched
    from selectit_dagster.inference.model_identity import local_path

    health = SERVERS.kinds()[section.kind].health
    with launched(section, local_path(model), health, log) as url:
        there = section.model_copy(update={"url": (url,)})
        started = model.model_copy(update={"server": there})
        _ask_anew(started)
        yield started


def longest_prompt(model: ServedModel) -> int | None:
    """Return the longest prompt in tokens that the server takes, None where it does not say."""
    said = _remembered(model)
    return None if said is None else said["longest"]


def _revision(model: ServedModel) -> str | None:
    from selectit_dagster.inference.model_identity import commit_of

    return commit_of(model)


def _parameters(model: ServedModel) -> int:
    from selectit_dagster.inference.model_loading import parameters_unloaded

    return parameters_unloaded(model)
