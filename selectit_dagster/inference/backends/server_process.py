"""A server that lives as long as a stage: started as the experiment file says, its log kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from selectit_dagster.artefacts.files import write_bytes
from selectit_dagster.errors import UserError, redacted
from selectit_dagster.experiment.server_section import ServerSection
from selectit_dagster.inference.backends.server_client import api_key
from selectit_dagster.local_servers import (
    LOOPBACK,
    Service,
    ServiceFailedError,
    free_port,
    running,
    wait_healthy,
)


@contextlib.contextmanager
def launched(section: ServerSection, model: str, health: str, log: Path) -> Iterator[str]:
    """Start the section's command and yield the server's address once it is healthy.

    Parameters
    ----------
    section:
        With ``launch``; ``{port}`` and ``{model}`` are filled in.
    model:
        Path or hub name of the model.
    health:
        The path that answers 200 once the server is ready.
    log:
        File that takes what the server says; it stays.

    Raises
    ------
    UserError
        When the command is not there, ends by itself or is not ready in time.
    """
    port = free_port()
    argv = [p.replace("{port}", str(port)).replace("{model}", model) for p in section.launch or ()]
    address = f"http://{LOOPBACK}:{port}"
    service = Service("the server", argv, log, address + health)
    log.unlink(missing_ok=True)  # only the last one is of use
    try:
        with running([service]) as check:
            wait_healthy(service, check, section.start_seconds)
            yield address
    except ServiceFailedError as error:
        raise _not_ready(error, section, argv[0]) from error
    finally:
        _without(api_key(section.api_key_env), log)


def _not_ready(error: ServiceFailedError, section: ServerSection, command: str) -> UserError:
    said = redacted("\n".join(f"  {line[:300]}" for line in error.tail[-12:]))
    if error.code is not None:
        return UserError(
            f"the server ended with exit code {error.code} before it was ready: {command}\n{said}",
            hint=f"its whole log is {error.log}; correct server.launch",
        )
    return UserError(
        f"the server was not ready after {section.start_seconds:.0f} s: {command}\n{said}",
        hint=f"its whole log is {error.log}; raise server.start_seconds if it only needs longer",
    )


def _without(key: str | None, log: Path) -> None:
    """Take the key out of the log, if the server wrote it there."""
    if key and log.exists() and key.encode() in (content := log.read_bytes()):
        write_bytes(log, content.replace(key.encode(), b"***"))
