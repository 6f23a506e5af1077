"""MLflow, and nothing else in this project opens it.

One parent run per Dagster run, and below it one run per asset, partition and attempt. If
the tracking store fails, the work goes on: each call is tried three times, then noted in
``tracking-failures.jsonl`` in the home, which the summary reports.

The client API is used throughout, never the fluent one: steps may run in threads and in
several processes at once, and a global "active run" would mix them up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from selectit_dagster.artefacts import Manifest
from selectit_dagster.errors import redacted
from selectit_dagster.files import read_json, write_bytes, write_json

LOGGER = logging.getLogger("selectit_dagster.tracking")
T = TypeVar("T")
_ATTEMPTS = 3
# MLflow's page has two faces; runs and metrics are on the one that is not for chats
_TRAINING = "workflowType=machine_learning"
_MAX_PARAM = 6000  # MLflow's own limit for the value of a parameter
_EARLIER = 5  # runs of an asset without partitions that a comparison shows
_SAMPLE_SECONDS = 10  # between two samples of the system's load
_BATCH = 100  # MLflow's own limit for parameters in one call
# MLflow's own patience with a server that is gone is minutes per call; work must not wait so
# long for its notes
_PATIENCE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def flatten(value: Any, prefix: str = "") -> dict[str, str]:  # noqa: ANN401 - nested plain data
    """Return nested settings as dotted names with text values, as MLflow's parameters are."""
    if isinstance(value, dict):
        items: dict[str, str] = {}
        for key, entry in value.items():
            items.update(flatten(entry, f"{prefix}.{key}" if prefix else str(key)))
        return items
    if isinstance(value, list | tuple):
        if value and all(isinstance(entry, dict) for entry in value):
            items = {}
            for index, entry in enumerate(value):
                items.update(flatten(entry, f"{prefix}.{entry.get('name', index)}"))
            return items
        return {prefix: json.dumps(list(value))}
    return {prefix: str(value)[:_MAX_PARAM]}


def numbers(value: Any, prefix: str = "") -> dict[str, float]:  # noqa: ANN401 - nested plain data
    """Return the finite numbers of nested data as dotted metric names."""
    if isinstance(value, bool) or value is None:
        return {}
    if isinstance(value, int | float):
        finite = value == value and abs(value) != float("inf")
        return {prefix: float(value)} if finite and prefix else {}
    if isinstance(value, dict):
        found: dict[str, float] = {}
        for key, entry in value.items():
            found.update(numbers(entry, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {}


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


def git_commit() -> str:
    """Return the commit of the working folder, or an empty text outside a repository."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - git is looked up on PATH on purpose
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


@dataclass
class TrackedRun:
    """One MLflow run; every method is safe to call when tracking is off or failing."""

    tracker: Tracker
    run_id: str | None
    url: str | None = None
    links: dict[str, str] = field(default_factory=dict)

    def params(self, settings: dict[str, Any]) -> None:
        """Log nested settings as flattened parameters."""
        pairs = list(flatten(settings).items())
        for start in range(0, len(pairs), _BATCH):
            self._do("log parameters", self._log_params, pairs[start : start + _BATCH])

    def _log_params(self, pairs: list[tuple[str, str]]) -> None:
        from mlflow.entities import Param

        self.tracker.client.log_batch(self.run_id, params=[Param(k, v) for k, v in pairs])

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log numbers at a step in one call."""
        if values:
            self._do("log metrics", self._log_metrics, values, step)

    def _log_metrics(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(k, float(v), now, step) for k, v in values.items()]
        for start in range(0, len(entries), 500):
            self.tracker.client.log_batch(self.run_id, metrics=entries[start : start + 500])

    def series(self, rows: list[dict[str, Any]], step_key: str) -> None:
        """Log a table of stepped metrics (a training log) in few calls."""
        self._do("log metric series", self._log_series, rows, step_key)

    def _log_series(self, rows: list[dict[str, Any]], step_key: str) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(name, value, now, int(row[step_key]))
            for row in rows
            for name, value in numbers(row).items()
            if name != step_key
        ]
        for start in range(0, len(entries), 500):
            self.tracker.client.log_batch(self.run_id, metrics=entries[start : start + 500])

    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        self._do("set tags", self._set_tags, values)

    def _set_tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.tracker.client.log_batch(
            self.run_id, tags=[RunTag(k, str(v)) for k, v in values.items()]
        )

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file with the run."""
        self._do(
            f"store {path.name}",
            lambda: self.tracker.client.log_artifact(self.run_id, str(path), folder),
        )

    def figure(self, png: bytes, name: str) -> None:
        """Store a picture under ``plots/``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.png"
            write_bytes(path, png)
            self.artifact(path, "plots")

    def tables(self, tables: dict[str, dict[str, list[Any]]]) -> None:
        """Store tables, columns by name, so that MLflow's page shows them as tables.

        Keys are paths in the run's artefacts that end in ``.json``. Written as a whole, so
        that a repeated try leaves no row twice (MLflow's own call would append).
        """
        self._do("store tables", self._log_tables, tables)

    def _log_tables(self, tables: dict[str, dict[str, list[Any]]]) -> None:
        for path, columns in tables.items():
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            value = {"columns": list(columns), "data": rows}
            self.tracker.client.log_text(self.run_id, json.dumps(value), path)
        shown = [{"path": path, "type": "table"} for path in tables]
        self.tracker.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(shown))

    def dataset(self, name: str, digest: str, source: Path | str, rows: int, context: str) -> None:
        """Log a dataset input with a digest over its full content (36 characters of it)."""
        self._do("log dataset", self._log_dataset, name, digest, str(source), rows, context)

    def _log_dataset(self, name: str, digest: str, source: str, rows: int, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": rows}),
        )
        tag = InputTag("mlflow.data.context", context)
        self.tracker.client.log_inputs(self.run_id, [DatasetInput(entry, [tag])])

    def adapter(self, folder: Path, *, name: str, tags: dict[str, str]) -> None:
        """Store an adapter folder as a logged model of this run.

        MLflow has no PEFT flavour, and its transformers flavour stores wrong key names for
        an adapter over a local base model; so the folder is logged as it is.
        """
        self._do("log the adapter", self._log_adapter, folder, name, tags)

    def _log_adapter(self, folder: Path, name: str, tags: dict[str, str]) -> None:
        client = self.tracker.client
        model = client.create_logged_model(
            self.tracker.experiment_id,
            name=name,
            source_run_id=self.run_id,
            model_type="peft-lora",
            tags=tags,
        )
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")

    def full_model(self, manifest: Path, *, name: str, tags: dict[str, str]) -> None:
        """Store a fully tuned model as a logged model that names its folder.

        Its weights are as large as the base model's and stay where they are; the manifest,
        which has their digests, is what is stored.
        """
        self._do("log the model", self._log_full_model, manifest, name, tags)

    def _log_full_model(self, manifest: Path, name: str, tags: dict[str, str]) -> None:
        client = self.tracker.client
        model = client.create_logged_model(
            self.tracker.experiment_id,
            name=name,
            source_run_id=self.run_id,
            model_type="full-model",
            tags={**tags, "artefact": str(manifest.parent)},
        )
        client.log_model_artifact(model.model_id, str(manifest))
        client.finalize_logged_model(model.model_id, "READY")

    def champion(self, registered: str, name: str) -> None:
        """Register the newest logged model called ``name`` and give it the alias champion."""
        self._do("register the champion", self._register_champion, registered, name)

    def _register_champion(self, registered: str, name: str) -> None:
        import mlflow
        from mlflow.exceptions import MlflowException

        client = self.tracker.client
        # the registry looks a models:/ address up in the process's own tracking store
        with _environment_kept("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(self.tracker.uri)
        found = client.search_logged_models(
            [self.tracker.experiment_id],
            filter_string=f"name = '{name}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
            max_results=1,
        )
        if not found:
            return
        with contextlib.suppress(MlflowException):  # it exists from an earlier run
            client.create_registered_model(registered)
        version = client.create_model_version(
            registered,
            source=f"models:/{found[0].model_id}",
            run_id=found[0].source_run_id,
            model_id=found[0].model_id,
        )
        client.set_registered_model_alias(registered, "champion", version.version)

    def _do(self, what: str, call: Callable[..., T], *arguments: Any) -> T | None:  # noqa: ANN401
        if self.run_id is None:
            return None
        return self.tracker.attempt(what, call, *arguments)


@dataclass
class Tracker:
    """The one door to MLflow.

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
    """

    uri: str
    experiment: str
    folder: Path
    ui_url: str
    dagster_url: str = ""
    enabled: bool = True
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
                result = call(*arguments)
            except Exception as error:
                if number < attempts:
                    self.wait(0.5 * 4 ** (number - 1))
                    continue
                self._dead = True
                self.note_failure(what, error)
            else:
                self._dead = False
                return result
        return None

    @property
    def failures_file(self) -> Path:
        """Where failed tracking calls are noted, one JSON object a line."""
        return self.folder / "tracking-failures.jsonl"

    def note_failure(self, what: str, error: Exception) -> None:
        """Append a failed call to the notes and warn once per call."""
        text = redacted(str(error))
        LOGGER.warning("MLflow tracking failed (%s): %s", what, text.splitlines()[0:1])
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

    def link(self, run_id: str) -> str:
        """Return the address of a run's page."""
        return f"{self.ui_url}/#/experiments/{self.experiment_id}/runs/{run_id}?{_TRAINING}"

    def comparison_link(self, asset: str, run: TrackedRun | None = None) -> str | None:
        """Return the address that compares the newest runs of an asset.

        One run per partition; of an asset without partitions the last few, so that two
        rankings with another α stand side by side. ``run`` is one that is still going on.
        None with fewer than two runs, or when the store does not answer.
        """
        if not self.enabled or (run is not None and run.run_id is None):
            return None
        runs = self.attempt("find runs to compare", self._comparable, asset, run) or []
        if len(runs) < 2:
            return None
        chosen = quote(json.dumps(runs))
        experiments = quote(json.dumps([self.experiment_id]))
        address = f"{self.ui_url}/#/compare-runs?runs={chosen}&experiments={experiments}"
        return f"{address}&{_TRAINING}"

    def _comparable(self, asset: str, run: TrackedRun | None) -> list[str]:
        found = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.asset = '{asset}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=1000,
        )
        if run is not None:
            found = [self.client.get_run(run.run_id), *found]
        newest: dict[str, str] = {}
        for entry in found:
            newest.setdefault(entry.data.tags.get("dagster.partition", ""), entry.info.run_id)
        if set(newest) == {""}:
            return [entry.info.run_id for entry in found[:_EARLIER]]
        return [newest[partition] for partition in sorted(newest)]

    def supersede(self, asset: str, partition: str | None, run: TrackedRun) -> None:
        """Tag a run ``current = yes`` and the earlier ones of its asset and partition ``no``."""
        if run.run_id is not None:
            self.attempt("tag what is current", self._supersede, asset, partition, run.run_id)

    def _supersede(self, asset: str, partition: str | None, run_id: str) -> None:
        same = [f"tags.asset = '{asset}'", "tags.current = 'yes'"]
        same += [f"tags.`dagster.partition` = '{partition}'"] if partition else []
        for old in self.client.search_runs([self.experiment_id], filter_string=" and ".join(same)):
            self.client.set_tag(old.info.run_id, "current", "no")
        self.client.set_tag(run_id, "current", "yes")

    def save_view(self, name: str, search: str, columns: list[str], group: str) -> str | None:
        """Save a view of the experiment's page and return its address.

        Parameters
        ----------
        name:
            Key of the view in its address.
        search:
            MLflow's filter of the runs.
        columns:
            Columns of the table, as ``kind.name``.
        group:
            Tag by which runs are grouped; a group shows the mean of its runs.
        """
        return self.attempt("save a view", self._save_view, name, search, columns, group)

    def _save_view(self, name: str, search: str, columns: list[str], group: str) -> str:
        by_tag = {"mode": "tag", "groupByData": group}
        state = {
            "searchFilter": search,
            "selectedColumns": [".`".join(column.split(".", 1)) + "`" for column in columns],
            "groupBy": {"aggregateFunction": "average", "groupByKeys": [by_tag]},
        }
        tag = f"mlflow.sharedViewState.{name}"
        self.client.set_experiment_tag(self.experiment_id, tag, json.dumps(state))
        place = f"{self.ui_url}/#/experiments/{self.experiment_id}/runs"
        return f"{place}?viewStateShareKey={name}&{_TRAINING}"

    def remember_comparison(self, dagster_run_id: str, asset: str, link: str) -> None:
        """Write a comparison's link into the description of a Dagster run's parent."""
        self._note_on_parent(dagster_run_id, f"compare.{asset}", f"[Compare {asset}]({link})")

    def remember_remedy(self, dagster_run_id: str, text: str) -> None:
        """Write what to do next into the description of a failed Dagster run's parent."""
        self._note_on_parent(dagster_run_id, "remedy", text)

    def _note_on_parent(self, dagster_run_id: str, name: str, text: str) -> None:
        if self.enabled and self.knows(dagster_run_id):
            self.attempt("describe the parent run", self._describe, dagster_run_id, name, text)

    def _describe(self, dagster_run_id: str, name: str, text: str) -> None:
        file = self._parent_note(dagster_run_id)
        with self._lock("parents"):
            note = json.loads(file.read_text(encoding="utf-8"))
            note.setdefault("lines", {})[name] = text
            write_json(file, note)
            described = "\n\n".join(note["lines"].values())
            self.client.set_tag(note["run_id"], "mlflow.note.content", described)

    def _parent_note(self, dagster_run_id: str) -> Path:
        return self.folder / "parents" / f"{dagster_run_id}.json"

    def knows(self, dagster_run_id: str) -> bool:
        """Tell whether a Dagster run has runs here, without asking the store."""
        return self._parent_note(dagster_run_id).exists()

    def parent(self, dagster_run_id: str, name: str, tags: dict[str, str]) -> str | None:
        """Return the parent run of a Dagster run, made by whichever step comes first."""
        if not self.enabled:
            return None
        return self.attempt("open the parent run", self._parent, dagster_run_id, name, tags)

    def _parent(self, dagster_run_id: str, name: str, tags: dict[str, str]) -> str:
        note = self._parent_note(dagster_run_id)
        with self._lock("parents"):
            if note.exists():
                return str(json.loads(note.read_text(encoding="utf-8"))["run_id"])
            run = self.client.create_run(
                self.experiment_id,
                run_name=name,
                tags={"dagster.run_id": dagster_run_id, "selectit.level": "parent", **tags},
            )
            described = tags.get("mlflow.note.content")
            lines = {"way back": described} if described else {}
            write_json(note, {"run_id": run.info.run_id, "lines": lines})
            return str(run.info.run_id)

    @contextlib.contextmanager
    def asset_run(
        self, parent: str | None, name: str, tags: dict[str, str]
    ) -> Iterator[TrackedRun]:
        """Open a child run for one attempt at one asset; it ends FINISHED, FAILED or KILLED."""
        if not self.enabled:
            yield TrackedRun(self, None)
            return
        run_id = self.attempt("open a run", self._open_child, parent, name, tags)
        tracked = TrackedRun(self, run_id, self.link(run_id) if run_id else None)
        status = "KILLED"
        try:
            with self._system_metrics(run_id):
                yield tracked
            status = "FINISHED"
        except Exception as error:
            status = "FAILED"
            tracked.tags({"selectit.error": redacted(str(error))[:4000]})
            raise
        finally:
            if run_id is not None:
                self.attempt("close a run", self.client.set_terminated, run_id, status)

    @contextlib.contextmanager
    def _system_metrics(self, run_id: str | None) -> Iterator[None]:
        """Sample processor, memory, disk, network and GPU while a run goes on."""
        monitor = self._monitor(run_id) if run_id is not None else None
        if monitor is None:
            yield
            return
        monitor.start()
        try:
            yield
        finally:
            self.attempt("store system metrics", _last_sample, monitor)

    def _monitor(self, run_id: str) -> Any:  # noqa: ANN401 - a SystemMetricsMonitor
        return self.attempt("watch the system", _system_monitor, run_id, self.uri)

    def _open_child(self, parent: str | None, name: str, tags: dict[str, str]) -> str:
        nested = {"mlflow.parentRunId": parent} if parent else {}
        commit = {"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}
        run = self.client.create_run(
            self.experiment_id,
            run_name=name,
            tags={"selectit.level": "asset", **nested, **commit, **tags},
        )
        return str(run.info.run_id)

    def close_run(self, dagster_run_id: str, status: str) -> int:
        """End the parent of a Dagster run and every child left RUNNING; return how many."""
        if not self.enabled:
            return 0
        return self.attempt("close runs", self._close_run, dagster_run_id, status) or 0

    def _close_run(self, dagster_run_id: str, status: str) -> int:
        running = self.client.search_runs(
            [self.experiment_id],
            filter_string=(
                f"tags.`dagster.run_id` = '{dagster_run_id}' and attributes.status = 'RUNNING'"
            ),
        )
        for run in running:
            self.client.set_terminated(run.info.run_id, status)
        self._mark_closed(dagster_run_id)
        return len(running)

    def _mark_closed(self, dagster_run_id: str) -> None:
        file = self._parent_note(dagster_run_id)
        with self._lock("parents"):
            if file.exists():
                note = json.loads(file.read_text(encoding="utf-8"))
                write_json(file, {**note, "closed": True})

    def unclosed(self) -> list[str]:
        """Return the Dagster runs whose MLflow runs were opened here and not yet ended."""
        if not self.enabled:
            return []
        notes = sorted((self.folder / "parents").glob("*.json"))
        return [note.stem for note in notes if not read_json(note).get("closed")]


@contextlib.contextmanager
def _environment_kept(name: str) -> Iterator[None]:
    """Put a variable back: MLflow writes its setting there, where another home would read it."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _system_monitor(run_id: str, uri: str) -> Any:  # noqa: ANN401 - a SystemMetricsMonitor
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    return SystemMetricsMonitor(run_id, sampling_interval=_SAMPLE_SECONDS, tracking_uri=uri)


def _last_sample(monitor: Any) -> None:  # noqa: ANN401 - a SystemMetricsMonitor
    """End the sampling; a run shorter than the interval gets its one sample here."""
    monitor.finish()
    monitor.collect_metrics()
    monitor.publish_metrics(monitor.aggregate_metrics())
    monitor.mlflow_logger.flush()


def record_manifest(run: TrackedRun, manifest: Manifest, folder: Path) -> None:
    """Log what every stage has: counts and figures as metrics, the manifest as an artefact."""
    values = {f"count.{name}": float(value) for name, value in manifest.counts.items()}
    values["seconds"] = manifest.seconds
    run.metrics(values)
    versions = {f"version.{name}": version for name, version in manifest.versions.items()}
    run.tags({"data_version": manifest.digest, "artefact": str(folder), **versions})
    run.artifact(folder / "manifest.json")


def forget_failures(tracker: Tracker) -> None:
    """Empty the notes of failed calls, at the start of a run that reports its own."""
    if tracker.failures_file.exists():
        write_bytes(tracker.failures_file, b"")
