"""One MLflow run, and what can be logged to it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selectit_dagster.artefacts.files import write_bytes
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.orchestration.tracking.values import flatten, numbers

if TYPE_CHECKING:
    from selectit_dagster.orchestration.tracking.tracker import Tracker

T = TypeVar("T")
# of the runs that hold one arm each, those of the newest comparison
ARM_ROWS = "tags.`selectit.level` = 'arm' and tags.current = 'yes'"
_BATCH = 100  # MLflow's own limit for parameters in one call


@contextlib.contextmanager
def _as_default_store(uri: str) -> Iterator[None]:
    """Make a store the process's default while a block runs.

    The prompt registry links prompts in that store, whatever the client's own one is, and would
    make an empty one in the working directory.
    """
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    given = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        with _use_tracking_uri(uri):
            yield
    finally:
        if given is not None:
            os.environ["MLFLOW_TRACKING_URI"] = given


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

    def adapter(
        self, folder: Path, *, name: str, tags: dict[str, str], base: dict[str, Any] | None = None
    ) -> None:
        """Store an adapter folder as a logged model of this run.

        MLflow has no PEFT flavour, and its transformers flavour stores wrong key names for
        an adapter over a local base model; so the folder is logged as it is, with the code that
        loads it. ``base`` names the base model: ``path``, ``revision`` and ``dtype``.
        """
        self._do("log the adapter", self._log_adapter, folder, name, tags, base)

    def _log_adapter(
        self, folder: Path, name: str, tags: dict[str, str], base: dict[str, Any] | None
    ) -> None:
        with self._logged_model(name, "peft-lora", tags) as model_id:
            self.tracker.client.log_model_artifacts(model_id, str(folder))
            if base is not None:
                self._log_loader(model_id, {**base, "adapter": True})

    def full_model(
        self, manifest: Path, *, name: str, tags: dict[str, str], base: dict[str, Any] | None = None
    ) -> None:
        """Store a fully tuned model as a logged model that names its folder.

        Its weights are as large as the base model's and stay where they are; the manifest,
        which has their digests, is what is stored, with the code that loads them from there.
        """
        self._do("log the model", self._log_full_model, manifest, name, tags, base)

    def _log_full_model(
        self, manifest: Path, name: str, tags: dict[str, str], base: dict[str, Any] | None
    ) -> None:
        tags = {**tags, "artefact": str(manifest.parent)}
        with self._logged_model(name, "full-model", tags) as model_id:
            self.tracker.client.log_model_artifact(model_id, str(manifest))
            if base is not None:
                place = {"path": str(manifest.parent / "model"), "revision": None}
                self._log_loader(model_id, {**base, **place, "adapter": False})

    def _log_loader(self, model_id: str, base: dict[str, Any]) -> None:
        """Add an ``MLmodel`` and its code to a logged model, so that any client can load it."""
        import mlflow.pyfunc
        from mlflow.models import Model

        config = {
            "base": base["path"],
            "revision": base.get("revision"),
            "dtype": base.get("dtype") or "auto",
            "adapter": base["adapter"],
        }
        with tempfile.TemporaryDirectory() as parent, _environment_kept("MLFLOW_TRACKING_URI"):
            folder = Path(parent) / "model"
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(Path(__file__).with_name("mlflow_model_code.py")),
                model_config=config,
                pip_requirements=["mlflow", "selectit-dagster"],
            )
            described = Model.load(str(folder))
            described.model_id = model_id
            # the adapter lies beside the MLmodel
            described.flavors["python_function"]["artifacts"] = {
                "adapter": {"path": ".", "uri": "."}
            }
            described.save(str(folder / "MLmodel"))
            self.tracker.client.log_model_artifacts(model_id, str(folder))

    @contextlib.contextmanager
    def _logged_model(self, name: str, kind: str, tags: dict[str, str]) -> Iterator[str]:
        """Make a logged model; it is ready when what is stored in it is there."""
        client = self.tracker.client
        model = client.create_logged_model(
            self.tracker.experiment_id,
            name=name,
            source_run_id=self.run_id,
            model_type=kind,
            tags=tags,
        )
        yield model.model_id
        client.finalize_logged_model(model.model_id, "READY")

    def prompts(self, name: str, texts: Sequence[str]) -> None:
        """Have the registry hold the rating prompts, and name their version on the run."""
        self._do("register the rating prompts", self._register_prompts, name, texts)

    def _register_prompts(self, name: str, texts: Sequence[str]) -> None:
        client, template = self.tracker.client, "\n\n".join(texts)
        with _as_default_store(self.tracker.uri):
            found = client.search_prompt_versions(name) if client.get_prompt(name) else []
            same = [v for v in found if v.template == template]
            version = same[0] if same else client.register_prompt(name, template)
            client.link_prompt_version_to_run(self.run_id, version)
        self._set_tags({"rating_prompts": f"{name}, version {version.version}"})

    def arms(self, rows: dict[str, dict[str, float]]) -> None:
        """Store one run for each arm, the only current ones, for a table with a row per arm."""
        self._do("store the arms", self._log_arms, rows)

    def _log_arms(self, rows: dict[str, dict[str, float]]) -> None:
        from mlflow.entities import Metric

        client, place = self.tracker.client, self.tracker.experiment_id
        for old in client.search_runs([place], ARM_ROWS):
            client.set_tag(old.info.run_id, "current", "no")
        for arm, values in rows.items():
            tags = {"selectit.level": "arm", "current": "yes", "arm": arm}
            run = client.create_run(place, run_name=arm, tags=tags)
            now = int(time.time() * 1000)
            figures = [Metric(name, value, now, 0) for name, value in values.items()]
            client.log_batch(run.info.run_id, metrics=figures)
            client.set_terminated(run.info.run_id, "FINISHED")

    def champion(
        self, registered: str, name: str, card: str = "", tags: dict[str, str] | None = None
    ) -> None:
        """Register the newest logged model called ``name`` and give it the alias champion.

        ``card`` says what it is and why it was chosen; it is the version's description.
        """
        self._do("register the champion", self._register_champion, registered, name, card, tags)

    def _register_champion(
        self, registered: str, name: str, card: str, tags: dict[str, str] | None
    ) -> None:
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
            description=card,
            tags=tags,
        )
        client.set_registered_model_alias(registered, "champion", version.version)

    def _do(self, what: str, call: Callable[..., T], *arguments: Any) -> T | None:  # noqa: ANN401
        if self.run_id is None:
            return None
        return self.tracker.attempt(what, call, *arguments)


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


def record_manifest(run: TrackedRun, manifest: Manifest, folder: Path) -> None:
    """Log what every stage has: counts and figures as metrics, the manifest as an artefact."""
    # a name with a slash stands in a section of its own, below what the asset is about
    values = {f"count/{name}": float(value) for name, value in manifest.counts.items()}
    values["cost/seconds"] = manifest.seconds
    run.metrics(values)
    versions = {f"version.{name}": version for name, version in manifest.versions.items()}
    run.tags({"data_version": manifest.digest, "artefact": str(folder), **versions})
    run.artifact(folder / "manifest.json")
