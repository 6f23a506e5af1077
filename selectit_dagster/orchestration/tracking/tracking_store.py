"""The tracking store: opened once and under a lock, asked patiently, its failures noted."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from urllib.parse import urlsplit

from selectit_dagster.errors import redacted

LOGGER = logging.getLogger("selectit_dagster.tracking")
T = TypeVar("T")
P = ParamSpec("P")
# addresses of stores that failed: the next stage has a tracker of its own, and need not wait too
_DEAD: set[str] = set()
# MLflow's own patience with a server that is gone is minutes per call; work must not wait so
# long for its notes. A machine without git is no reason for a warning
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
# one line for each of MLflow's tries; the failure itself is told here
_QUIET = {"alembic": "WARNING", "mlflow.store": "WARNING", "urllib3.connectionpool": "ERROR"}
# seconds before a call is tried again: half of one, then four times as many, at most these
_LONGEST_PAUSE = 8.0
_PORTS = {"postgresql": 5432, "mysql": 3306, "http": 80, "https": 443}
_LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def check_reachable(uri: str) -> None:
    """Raise at once when a store cannot be opened; MLflow would retry for minutes.

    Raises
    ------
    OSError, sqlite3.Error
        When the sqlite file cannot be opened, or nothing listens at the address.
    """
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
            connection.execute("select count(*) from sqlite_master")
        return
    usual = _PORTS.get(parts.scheme.partition("+")[0])
    if usual is not None and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or usual), timeout=3).close()


def follow_home(uri: str, artifacts: Path) -> None:
    """Have a home's own store say where its artefacts lie now: the home may have been moved.

    MLflow stores the place of every run as an absolute address, so a copied home would show, and
    write into, the folder that it was copied from.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not file.exists() or file.parent != artifacts.parent:
        return
    now, depth = artifacts.as_uri(), "/mlflow/artifacts"
    with contextlib.closing(sqlite3.connect(file, timeout=20)) as store, store:
        tables = {name for (name,) in store.execute("select name from sqlite_master")}
        if "experiments" not in tables:
            return
        places = store.execute("select artifact_location from experiments").fetchall()
        former = {p[: p.rindex(depth) + len(depth)] for (p,) in places if p and depth in p}
        for old in former - {now}:
            for table in tables & set(_LOCATIONS):
                column = _LOCATIONS[table]
                store.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"where substr({column}, 1, ?) = ?",
                    (now, len(old) + 1, len(old) + 1, f"{old}/"),
                )


def _pauses() -> list[float]:
    """Return the pauses between the tries of a call: 10 s; 42 s with the deployment's 6 retries.

    A deployment starts its server again, which takes it half a minute.
    """
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    tries = int(os.environ.get(name, _SETTINGS[name])) + 1
    return [min(0.5 * 4**n, _LONGEST_PAUSE) for n in range(tries)]


class _Patient(Protocol):
    def attempt(self, what: str, call: Callable[[], T]) -> T | None: ...


S = TypeVar("S", bound=_Patient)


def attempted(
    what: str,
) -> Callable[[Callable[Concatenate[S, P], T]], Callable[Concatenate[S, P], T | None]]:
    """Make a method one whose failure harms nothing: it is noted as ``what``; None comes back."""

    def wrap(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T | None]:
        @functools.wraps(method)
        def tried(self: S, *args: P.args, **kwargs: P.kwargs) -> T | None:
            return self.attempt(what, lambda: method(self, *args, **kwargs))

        return tried

    return wrap


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
    enabled:
        Nothing is asked of the store without it.
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

    @property
    def _dead(self) -> bool:
        """The store has just failed at every try, for whichever tracker of this process."""
        return self.uri in _DEAD

    @property
    def not_tracked(self) -> str:
        """What a person is told where there is no run in MLflow."""
        return (
            f"nothing is tracked: MLflow at {redacted(self.uri)} cannot be used; why, and "
            f"what it misses, is in {self.failures_file}"
        )

    @property
    def home(self) -> Path:
        """Root of the home that the folder lies in."""
        return self.folder.parent

    @property
    def client(self) -> Any:  # noqa: ANN401 - an MlflowClient, imported late
        """The MLflow client; the store exists and the experiment is there."""
        if self._client is None:
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            check_reachable(self.uri)
            from mlflow import MlflowClient

            for name, level in _QUIET.items():
                logging.getLogger(name).setLevel(level)
            with self._lock("initialise"):
                follow_home(self.uri, self.folder / "artifacts")
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
            if found.lifecycle_stage == "deleted":
                LOGGER.warning("the deleted MLflow experiment %s is restored", self.experiment)
                client.restore_experiment(found.experiment_id)
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

    def attempt(self, what: str, call: Callable[[], T], *, comes_again: bool = False) -> T | None:
        """Call, again after growing pauses; note a failure that lasts and go on.

        What ``comes_again`` of itself is not missing in MLflow, so it is not noted.
        """
        if not self.enabled:
            return None
        # a store that has just failed at every try would cost every later call the same
        # waiting; a single try is enough to notice that it is back
        for pause in (None,) if self._dead else (*_pauses(), None):
            try:
                if self._dead:
                    # MLflow would try again for seconds, for each of a hundred notes
                    check_reachable(self.uri)
                result = call()
            except Exception as error:
                if pause is not None:
                    self.wait(pause)
                    continue
                if not comes_again:
                    self.note_failure(what, error)
                _DEAD.add(self.uri)
            else:
                if self._dead:
                    LOGGER.warning("MLflow answers again")
                _DEAD.discard(self.uri)
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
