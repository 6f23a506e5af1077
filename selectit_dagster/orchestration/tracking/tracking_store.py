"""The tracking store: opened once and under a lock, asked patiently, its failures noted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selectit_dagster.errors import redacted

LOGGER = logging.getLogger("selectit_dagster.tracking")
T = TypeVar("T")
_ATTEMPTS = 3
# MLflow's own patience with a server that is gone is minutes per call; work must not wait so
# long for its notes
_PATIENCE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def check_reachable(uri: str) -> None:
    """Raise at once when a database cannot be opened; MLflow would retry for minutes.

    Raises
    ------
    OSError, sqlite3.Error
        When the sqlite file cannot be opened, or nothing listens at the database's address.
    """
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
            connection.execute("select count(*) from sqlite_master")
    elif parts.scheme.startswith(("postgresql", "mysql")) and parts.hostname:
        port = parts.port or (5432 if parts.scheme.startswith("postgresql") else 3306)
        socket.create_connection((parts.hostname, port), timeout=5).close()


def check_listens(uri: str) -> None:
    """Raise at once when nothing listens at the address of a tracking server.

    Raises
    ------
    OSError
        When there is no connection within two seconds.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=2).close()


@dataclass
class TrackingStore:
    """One experiment of a tracking store, which may fail without harm to the work.

    Parameters
    ----------
    uri:
        Tracking URI; a sqlite URI is initialised once, under a lock, before its first use.
    experiment:
        Name of the MLflow experiment.
    folder:
        Folder for locks, notes of failures and, with sqlite, the artefacts.
    ui_url, dagster_url:
        Addresses under which a browser finds MLflow and Dagster.
    required:
        Nothing may be made that is not tracked.
    """

    uri: str
    experiment: str
    folder: Path
    ui_url: str
    dagster_url: str = ""
    enabled: bool = True
    required: bool = False
    wait: Callable[[float], None] = time.sleep
    _client: Any = field(default=None, repr=False)
    _experiment_id: str | None = None
    _dead: bool = False

    @property
    def home(self) -> Path:
        """Root of the home that the folder lies in."""
        return self.folder.parent

    @property
    def client(self) -> Any:  # noqa: ANN401 - an MlflowClient, imported late
        """The MLflow client; the store exists and the experiment is there."""
        if self._client is None:
            for name, value in _PATIENCE.items():
                os.environ.setdefault(name, value)
            check_reachable(self.uri)
            from mlflow import MlflowClient

            logging.getLogger("alembic").setLevel(logging.WARNING)
            logging.getLogger("mlflow.store").setLevel(logging.WARNING)
            # one line for each of MLflow's tries; the failure itself is told here
            logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
            with self._lock("initialise"):
                # the first opening of an empty sqlite file runs its migrations, which two
                # processes must not do at once
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self._experiment_id = self._ensure_experiment(client)
            self._client = client
        return self._client

    @property
    def experiment_id(self) -> str:
        """The MLflow experiment's id."""
        _ = self.client
        return str(self._experiment_id)

    def _ensure_experiment(self, client: Any) -> str:  # noqa: ANN401 - an MlflowClient
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith("sqlite:"):
            location = (self.folder / "artifacts" / self.experiment).as_uri()
        # MLflow's page then opens on runs and metrics rather than on traces of chats
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(self.experiment, artifact_location=location, tags=kind))

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{name}.lock").open("w", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def attempt(self, what: str, call: Callable[..., T], *arguments: Any) -> T | None:  # noqa: ANN401
        """Call, up to three times with growing pauses; note the failure and go on."""
        # a store that has just failed three times would cost every later call the same
        # waiting; a single try is enough to notice that it is back
        attempts = 1 if self._dead else _ATTEMPTS
        for number in range(1, attempts + 1):
            try:
                if self._dead:
                    # MLflow would try again for seconds, for each of a hundred notes
                    check_listens(self.uri)
                result = call(*arguments)
            except Exception as error:
                if number < attempts:
                    self.wait(0.5 * 4 ** (number - 1))
                    continue
                self.note_failure(what, error)
                self._dead = True
            else:
                if self._dead:
                    LOGGER.warning("MLflow answers again")
                self._dead = False
                return result
        return None

    @property
    def failures_file(self) -> Path:
        """Where failed tracking calls are noted, one JSON object a line."""
        return self.folder / "tracking-failures.jsonl"

    def note_failure(self, what: str, error: Exception) -> None:
        """Append a failed call to the notes; warn of the first in a row."""
        text = redacted(str(error))
        if not self._dead:
            first = next(iter(text.splitlines()), type(error).__name__)[:200]
            LOGGER.warning(
                "MLflow tracking failed (%s): %s; the work goes on, what MLflow misses is in %s",
                what,
                first,
                self.failures_file,
            )
        entry = {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "what": what, "error": text[:500]}
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.failures_file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(entry) + "\n")

    def failures(self) -> list[dict[str, Any]]:
        """Return the failed calls noted so far."""
        if not self.failures_file.exists():
            return []
        found = []
        for line in self.failures_file.read_text("utf-8", errors="replace").splitlines():
            # a process that was killed while it noted a failure leaves half a line
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found
