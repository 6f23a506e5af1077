"""MLflow's pages: their addresses, what they compare, and what they show as current."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from selectit_dagster.orchestration.tracking.tracking_store import TrackingStore

if TYPE_CHECKING:
    from selectit_dagster.orchestration.tracking.tracked_run import TrackedRun

# MLflow's page has two faces; runs and metrics are on the one that is not for chats
_TRAINING = "workflowType=machine_learning"
_VIEW = "mlflow.sharedViewState.{}"
_EARLIER = 5  # runs of an asset without partitions that a comparison shows


class Pages(TrackingStore):
    """What a browser finds in the store."""

    def link(self, run_id: str) -> str | None:
        """Return the address of a run's page, None when the store does not answer."""
        experiment = self.attempt("find the experiment", lambda: self.experiment_id)
        if experiment is None:
            return None
        return f"{self.ui_url}/#/experiments/{experiment}/runs/{run_id}?{_TRAINING}"

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

    def start_page(self) -> str | None:
        """Return the address to begin with: the arms side by side, else the experiment's runs."""
        return self.attempt("find the start page", self._start_page)

    def _start_page(self) -> str:
        known = self.client.get_experiment(self.experiment_id).tags
        place = f"{self.ui_url}/#/experiments/{self.experiment_id}/runs?{_TRAINING}"
        return f"{place}&viewStateShareKey=arms" if _VIEW.format("arms") in known else place

    def save_view(self, name: str, search: str, columns: list[str]) -> str | None:
        """Save a view of the experiment's page and return its address.

        Parameters
        ----------
        name:
            Key of the view in its address.
        search:
            MLflow's filter of the runs.
        columns:
            Columns of the table, as ``kind.name``.
        """
        return self.attempt("save a view", self._save_view, name, search, columns)

    def _save_view(self, name: str, search: str, columns: list[str]) -> str:
        state = {
            "searchFilter": search,
            "selectedColumns": [".`".join(column.split(".", 1)) + "`" for column in columns],
        }
        self.client.set_experiment_tag(self.experiment_id, _VIEW.format(name), json.dumps(state))
        place = f"{self.ui_url}/#/experiments/{self.experiment_id}/runs"
        return f"{place}?viewStateShareKey={name}&{_TRAINING}"
