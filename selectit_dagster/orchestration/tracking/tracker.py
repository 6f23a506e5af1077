"""The door to MLflow: a run per attempt at an asset, its parent, and the pages that show them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import UserError, redacted
from selectit_dagster.orchestration.tracking.tracked_run import TrackedRun
from selectit_dagster.orchestration.tracking.tracking_store import TrackingStore, attempted

# MLflow's page has two faces; runs and metrics are on the one that is not for chats
_TRAINING = "workflowType=machine_learning"
_VIEW = "mlflow.sharedViewState.{}"
_EARLIER = 5  # runs of an asset without partitions that a comparison shows
_SAMPLE_SECONDS = 10  # between two samples of the system's load


class Tracker(TrackingStore):
    """The one door to MLflow; :class:`TrackingStore` says its parameters.

    A note per Dagster run in ``parents/`` says what is known of it without asking the store.
    """

    @contextlib.contextmanager
    def asset_run(
        self, parent: str | None, name: str, tags: dict[str, str]
    ) -> Iterator[TrackedRun]:
        """Open a child run for one attempt at one asset; it ends FINISHED, FAILED or KILLED.

        Raises
        ------
        UserError
            When tracking is required and no run can be opened.
        """
        run_id = self._open_child(parent, name, tags)
        if run_id is None and self.enabled and self.required:
            raise UserError(
                f"MLflow at {redacted(self.uri)} cannot be used, and tracking.required is true",
                hint=f"start it, or set tracking.required: false; {self.failures_file} says more",
            )
        tracked = TrackedRun(self, run_id, self.link(run_id) if run_id else None)
        status = "KILLED"
        try:
            with self._watched(run_id):
                yield tracked
            status = "FINISHED"
        except Exception as error:
            status = "FAILED"
            tracked.tags({"selectit.error": redacted(str(error))[:4000]})
            raise
        finally:
            if run_id is not None:
                self.attempt("close a run", lambda: self.client.set_terminated(run_id, status))

    @attempted("open a run")
    def _open_child(self, parent: str | None, name: str, tags: dict[str, str]) -> str:
        from mlflow.utils.git_utils import get_git_commit

        nested = {"mlflow.parentRunId": parent} if parent else {}
        commit = get_git_commit(str(Path.cwd()))
        made_by = {"mlflow.source.git.commit": commit} if commit else {}
        run = self.client.create_run(
            self.experiment_id,
            run_name=name,
            tags={"selectit.level": "asset", **nested, **made_by, **tags},
        )
        return str(run.info.run_id)

    @contextlib.contextmanager
    def _watched(self, run_id: str | None) -> Iterator[None]:
        """Store samples of the system's load with a run while the block goes on."""
        monitor = self._monitor(run_id) if run_id is not None else None
        if monitor is None:
            yield
            return
        monitor.start()
        try:
            yield
        finally:
            self._last_sample(monitor)

    @attempted("watch the system")
    def _monitor(self, run_id: str) -> Any:  # noqa: ANN401 - a SystemMetricsMonitor
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        return SystemMetricsMonitor(
            run_id, sampling_interval=_SAMPLE_SECONDS, tracking_uri=self.uri
        )

    @attempted("store system metrics")
    def _last_sample(self, monitor: Any) -> None:  # noqa: ANN401
        """End the sampling; a run shorter than the interval gets its one sample here."""
        monitor.finish()
        monitor.collect_metrics()
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()

    def _note(self, dagster_run_id: str) -> Path:
        return self.folder / "parents" / f"{dagster_run_id}.json"

    def knows(self, dagster_run_id: str) -> bool:
        """Tell whether a Dagster run has runs here, without asking the store."""
        return self._note(dagster_run_id).exists()

    @attempted("open the parent run")
    def parent(self, dagster_run_id: str, name: str, tags: dict[str, str]) -> str:
        """Return the parent run of a Dagster run, made by whichever step comes first."""
        note = self._note(dagster_run_id)
        with self._lock("parents"):
            if note.exists():
                return str(read_json(note)["run_id"])
            given = {"dagster.run_id": dagster_run_id, "selectit.level": "parent", **tags}
            run = self.client.create_run(self.experiment_id, run_name=name, tags=given)
            described = tags.get("mlflow.note.content")
            lines = {"way back": described} if described else {}
            write_json(note, {"run_id": run.info.run_id, "lines": lines})
            return str(run.info.run_id)

    def describe_parent(self, dagster_run_id: str, name: str, text: str) -> None:
        """Write a paragraph into the description of a Dagster run's parent, in place of ``name``'s.

        Such as a comparison's link, or what to do next where the run failed.
        """
        if self.knows(dagster_run_id):
            self._describe(dagster_run_id, name, text)

    @attempted("describe the parent run")
    def _describe(self, dagster_run_id: str, name: str, text: str) -> None:
        file = self._note(dagster_run_id)
        with self._lock("parents"):
            note = read_json(file)
            note.setdefault("lines", {})[name] = text
            write_json(file, note)
            described = "\n\n".join(note["lines"].values())
            self.client.set_tag(note["run_id"], "mlflow.note.content", described)

    def close_run(self, dagster_run_id: str, status: str) -> int | None:
        """End the parent of a Dagster run and every child left RUNNING; return how many.

        None when the store does not answer; the run is among the ``unclosed`` ones then.
        """

        def close() -> int:
            same = f"tags.`dagster.run_id` = '{dagster_run_id}'"
            running = self._found(f"{same} and attributes.status = 'RUNNING'")
            for run in running:
                self.client.set_terminated(run.info.run_id, status)
            file = self._note(dagster_run_id)
            with self._lock("parents"):
                if file.exists():
                    write_json(file, {**read_json(file), "closed": True})
            return len(running)

        return self.attempt("close runs", close, comes_again=self.knows(dagster_run_id))

    def unclosed(self) -> list[str]:
        """Return the Dagster runs whose MLflow runs were opened here and not yet ended."""
        if not self.enabled:
            return []
        notes = sorted((self.folder / "parents").glob("*.json"))
        return [note.stem for note in notes if not read_json(note).get("closed")]

    def _found(self, search: str, most: int = 1000) -> list[Any]:
        """Return the experiment's runs that a filter of MLflow's finds, newest first."""
        newest = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.experiment_id], search, 1, most, newest))

    @attempted("find the experiment")
    def link(self, run_id: str, artefact: str = "") -> str:
        """Return the address of a run's page, or of a file on it; None without an answer."""
        place = f"runs/{run_id}" + (f"/artifacts/{artefact}" if artefact else "")
        return f"{self.ui_url}/#/experiments/{self.experiment_id}/{place}?{_TRAINING}"

    @attempted("find runs to compare")
    def comparison_link(self, asset: str, run: TrackedRun | None = None) -> str | None:
        """Return the address that compares the newest runs of an asset.

        One run per partition; of an asset without partitions the last few, so that two
        rankings with another α stand side by side. ``run`` is one that is still going on.
        None with fewer than two runs, or when the store does not answer.
        """
        found = self._found(f"tags.asset = '{asset}' and attributes.status = 'FINISHED'")
        if run is not None:
            found.insert(0, self.client.get_run(run.run_id))
        newest: dict[str, str] = {}
        for entry in found:
            newest.setdefault(entry.data.tags.get("dagster.partition", ""), entry.info.run_id)
        runs = [newest[partition] for partition in sorted(newest)]
        if set(newest) == {""}:
            runs = [entry.info.run_id for entry in found[:_EARLIER]]
        if len(runs) < 2:
            return None
        experiments = quote(json.dumps([self.experiment_id]))
        address = f"{self.ui_url}/#/compare-runs?runs={quote(json.dumps(runs))}"
        return f"{address}&experiments={experiments}&{_TRAINING}"

    @attempted("tag what is current")
    def supersede(self, asset: str, partition: str | None, run_id: str) -> None:
        """Tag a run ``current = yes`` and the earlier ones of its asset and partition ``no``."""
        same = [f"tags.asset = '{asset}'", "tags.current = 'yes'"]
        same += [f"tags.`dagster.partition` = '{partition}'"] if partition else []
        for old in self._found(" and ".join(same)):
            self.client.set_tag(old.info.run_id, "current", "no")
        self.client.set_tag(run_id, "current", "yes")

    @attempted("find the start page")
    def start_page(self) -> str:
        """Return the address to begin with: the arms side by side, else the experiment's runs."""
        known = self.client.get_experiment(self.experiment_id).tags
        place = f"{self.ui_url}/#/experiments/{self.experiment_id}/runs?{_TRAINING}"
        return f"{place}&viewStateShareKey=arms" if _VIEW.format("arms") in known else place

    @attempted("save a view")
    def save_view(self, name: str, search: str, columns: list[str]) -> str:
        """Save a view of the experiment's page under ``name`` and return its address.

        ``search`` is MLflow's filter of the runs; ``columns`` are ``kind.name``.
        """
        state = {
            "searchFilter": search,
            "selectedColumns": [".`".join(column.split(".", 1)) + "`" for column in columns],
        }
        self.client.set_experiment_tag(self.experiment_id, _VIEW.format(name), json.dumps(state))
        place = f"{self.ui_url}/#/experiments/{self.experiment_id}/runs"
        return f"{place}?viewStateShareKey={name}&{_TRAINING}"
