"""One MLflow run, what can be logged to it, and how plain data become parameters and metrics."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from selectit_dagster.artefacts.files import write_bytes
from selectit_dagster.artefacts.manifest import MANIFEST, Manifest, read_manifest
from selectit_dagster.orchestration.tracking.tracking_store import attempted

if TYPE_CHECKING:
    from selectit_dagster.orchestration.tracking.tracker import Tracker

T = TypeVar("T")
# of the runs that hold one arm each, those of the newest comparison
ARM_ROWS = "tags.`selectit.level` = 'arm' and tags.current = 'yes'"
_PARAMS, _METRICS = 100, 500  # MLflow's limit of parameters in one call, and ours of metrics
_MAX_PARAM = 6000  # MLflow's own limit for the value of a parameter
# numbers that an engine notes of its settings and of what it was given, not of what came out
_CONSTANTS = frozenset(
    (
        *("accumulation", "adapted_modules", "base_parameters", "batch_tokens", "bytes"),
        *("decontamination.ngram", "determinism", "max_length", "micro_batch_size", "models"),
        *("parameters", "processes", "resamples", "seed", "size", "source", "theta"),
        *("trainable_parameters", "weights_bytes", "workers"),
    )
)


def flatten(value: Any, prefix: str = "") -> dict[str, str]:  # noqa: ANN401 - nested plain data
    """Return nested settings as dotted names with text values, as MLflow's parameters are."""
    if isinstance(value, list | tuple) and value and all(isinstance(e, dict) for e in value):
        value = {str(entry.get("name", index)): entry for index, entry in enumerate(value)}
    if isinstance(value, dict):
        items: dict[str, str] = {}
        for key, entry in value.items():
            items.update(flatten(entry, f"{prefix}.{key}" if prefix else str(key)))
        return items
    text = json.dumps(list(value)) if isinstance(value, list | tuple) else str(value)
    return {prefix: text[:_MAX_PARAM]}


def numbers(value: Any, prefix: str = "") -> dict[str, float]:  # noqa: ANN401 - nested plain data
    """Return the finite numbers of nested data as dotted metric names."""
    if isinstance(value, dict):
        found: dict[str, float] = {}
        for key, entry in value.items():
            found.update(numbers(entry, f"{prefix}.{key}" if prefix else str(key)))
        return found
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return {prefix: float(value)} if plain and prefix and abs(value) < float("inf") else {}


def split_constants(figures: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return what was measured, for charts, and what was set, for parameters."""
    fixed = {
        name: value
        for name, value in figures.items()
        if name in _CONSTANTS or name.split(".")[0] in _CONSTANTS
    }
    return {name: v for name, v in figures.items() if name not in fixed}, fixed


@contextlib.contextmanager
def _as_default_store(uri: str) -> Iterator[None]:
    """Make a store the process's default while a block runs, for it and the registry alone.

    MLflow links prompts and looks ``models:/`` up in that store, whatever the client's own one
    is; it writes it into the environment, where another home would read it.
    """
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    given = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        with _use_tracking_uri(uri):
            yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if given is not None:
            os.environ["MLFLOW_TRACKING_URI"] = given


@dataclass
class TrackedRun:
    """One MLflow run; every method is safe to call when tracking is off or failing."""

    tracker: Tracker
    run_id: str | None
    url: str | None = None
    links: dict[str, str] = field(default_factory=dict)

    def attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """Call where there is a run, as the store does; see :meth:`TrackingStore.attempt`."""
        return self.tracker.attempt(what, call) if self.run_id is not None else None

    @property
    def _client(self) -> Any:  # noqa: ANN401 - an MlflowClient
        return self.tracker.client

    @attempted("log parameters")
    def params(self, settings: dict[str, Any]) -> None:
        """Log nested settings as flattened parameters."""
        from mlflow.entities import Param

        entries = [Param(*pair) for pair in flatten(settings).items()]
        for start in range(0, len(entries), _PARAMS):
            self._client.log_batch(self.run_id, params=entries[start : start + _PARAMS])

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        if values:
            self.series([(step, values)])

    @attempted("log metrics")
    def series(self, rows: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Log the numbers of rows (a training log), each with its step, in few calls."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(name, value, now, step)
            for step, row in rows
            for name, value in numbers(row).items()
        ]
        for start in range(0, len(entries), _METRICS):
            self._client.log_batch(self.run_id, metrics=entries[start : start + _METRICS])

    @attempted("set tags")
    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(k, str(v)) for k, v in values.items()])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file with the run."""
        self.attempt(
            f"store {path.name}", lambda: self._client.log_artifact(self.run_id, str(path), folder)
        )

    @attempted("store a picture")
    def figure(self, png: bytes, name: str) -> str | None:
        """Store a picture under ``plots/``; return where MLflow's own server shows it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.png"
            write_bytes(path, png)
            self._client.log_artifact(self.run_id, str(path), "plots")
        if self.tracker.uri.startswith("databricks"):
            return None  # its pictures need a log-in that a page of Dagster's has not
        place = f"path=plots/{quote(name)}.png&run_uuid={self.run_id}"
        return f"{self.tracker.ui_url}/get-artifact?{place}"

    @attempted("store tables")
    def tables(self, tables: dict[str, list[dict[str, Any]]]) -> None:
        """Store lists of rows, so that MLflow's page shows them as tables.

        Keys are paths in the run's artefacts that end in ``.json``. Written as a whole, so
        that a repeated try leaves no row twice (MLflow's own call would append).
        """
        tables = {path: rows for path, rows in tables.items() if rows}
        for path, rows in tables.items():
            value = {"columns": list(rows[0]), "data": [[r.get(n) for n in rows[0]] for r in rows]}
            self._client.log_text(self.run_id, json.dumps(value), path)
        if tables:
            shown = [{"path": path, "type": "table"} for path in tables]
            self._client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(shown))

    @attempted("log dataset")
    def dataset(self, name: str, digest: str, source: Path, rows: int, context: str) -> None:
        """Log a dataset input with a digest over its full content (36 characters of it)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local",
            source=json.dumps({"uri": str(source)}),
            profile=json.dumps({"num_rows": rows}),
        )
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self.run_id, [DatasetInput(entry, [tag])])

    def dataset_of(self, folder: Path, name: str, context: str) -> None:
        """Log a stored dataset as an input, by its digest; ``context`` says what it is for."""
        source = read_manifest(folder)
        if source is not None:
            known = ("selected", "kept", "questions")
            rows = next((source.counts[key] for key in known if key in source.counts), 0)
            self.dataset(name, source.digest, folder, rows, context)

    @attempted("log the model")
    def model(
        self, path: Path, *, name: str, tags: dict[str, str], base: dict[str, Any] | None = None
    ) -> None:
        """Store a tuned model as a logged model of this run, with the code that loads it.

        A folder is an adapter, which is stored: MLflow has no PEFT flavour, and its transformers
        flavour stores wrong key names for an adapter over a local base model. The manifest of a
        fully tuned model is stored alone, with its digests; the weights, as large as the base
        model's, stay where they are. ``base`` names the base model: ``path``, ``revision`` and
        ``dtype``.
        """
        adapter, client = path.is_dir(), self._client
        model = client.create_logged_model(
            self.tracker.experiment_id,
            name=name,
            source_run_id=self.run_id,
            model_type="peft-lora" if adapter else "full-model",
            tags=tags if adapter else {**tags, "artefact": str(path.parent)},
        )
        if adapter:
            client.log_model_artifacts(model.model_id, str(path))
        else:
            client.log_model_artifact(model.model_id, str(path))
            place = {"path": str(path.parent / "model"), "revision": None}
            base = {**base, **place} if base is not None else None
        if base is not None:
            self._log_loader(model.model_id, base, adapter)
        client.finalize_logged_model(model.model_id, "READY")

    def _log_loader(self, model_id: str, base: dict[str, Any], adapter: bool) -> None:
        """Add an ``MLmodel`` and its code to a logged model, so that any client can load it."""
        import mlflow.pyfunc
        from mlflow.models import Model

        config = {
            "base": base["path"],
            "revision": base.get("revision"),
            "dtype": base.get("dtype") or "auto",
            "adapter": adapter,
        }
        with tempfile.TemporaryDirectory() as parent, _as_default_store(self.tracker.uri):
            folder = Path(parent) / "model"
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(Path(__file__).with_name("mlflow_model_code.py")),
                model_config=config,
                pip_requirements=["mlflow", "torch", "transformers", "peft", "safetensors"],
            )
            described = Model.load(str(folder))
            described.model_id = model_id
            # the adapter lies beside the MLmodel
            described.flavors["python_function"]["artifacts"] = {
                "adapter": {"path": ".", "uri": "."}
            }
            described.save(str(folder / "MLmodel"))
            self._client.log_model_artifacts(model_id, str(folder))

    @attempted("register the rating prompts")
    def prompts(self, name: str, texts: Sequence[str]) -> None:
        """Have the registry hold the rating prompts, and name their version on the run."""
        client, template = self._client, "\n\n".join(texts)
        with _as_default_store(self.tracker.uri):
            found = client.search_prompt_versions(name) if client.get_prompt(name) else []
            same = [v for v in found if v.template == template]
            version = same[0] if same else client.register_prompt(name, template)
            client.link_prompt_version_to_run(self.run_id, version)
        client.set_tag(self.run_id, "rating_prompts", f"{name}, version {version.version}")

    @attempted("store the arms")
    def arms(self, rows: dict[str, dict[str, float]]) -> None:
        """Store one run for each arm, the only current ones, for a table with a row per arm."""
        client, place = self._client, self.tracker.experiment_id
        for old in client.search_runs([place], ARM_ROWS):
            client.set_tag(old.info.run_id, "current", "no")
        for arm, values in rows.items():
            tags = {"selectit.level": "arm", "current": "yes", "arm": arm}
            run = client.create_run(place, run_name=arm, tags=tags)
            for name, value in values.items():
                client.log_metric(run.info.run_id, name, value)
            client.set_terminated(run.info.run_id, "FINISHED")

    @attempted("register the champion")
    def champion(self, registered: str, name: str, card: str, tags: dict[str, str]) -> None:
        """Register the newest logged model called ``name`` and give it the alias champion.

        ``card`` says what it is and why it was chosen; it is the version's description.
        """
        from mlflow.exceptions import MlflowException

        client = self._client
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
        with _as_default_store(self.tracker.uri):
            version = client.create_model_version(
                registered,
                source=f"models:/{found[0].model_id}",
                run_id=found[0].source_run_id,
                model_id=found[0].model_id,
                description=card,
                tags=tags,
            )
        client.set_registered_model_alias(registered, "champion", version.version)


def record_manifest(run: TrackedRun, manifest: Manifest, folder: Path) -> None:
    """Log what every stage has: counts and figures as metrics, the manifest as an artefact."""
    # MLflow's charts stand by name, those with a slash above all others: so none has one, and what
    # every stage has comes below loss, benchmarks and what else an asset is about
    counts = {f"stage.count.{name}": float(value) for name, value in manifest.counts.items()}
    run.metrics({**counts, "stage.seconds": manifest.seconds})
    versions = {f"version.{name}": version for name, version in manifest.versions.items()}
    run.tags({"data_version": manifest.digest, "artefact": str(folder), **versions})
    run.artifact(folder / MANIFEST)
