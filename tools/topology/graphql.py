"""Dagster's GraphQL interface, as far as a deployment is tried through it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on InvalidSubsetError { message }
    ... on PipelineNotFoundError { message }
  }
}
"""
_RUNS = """
query Runs($limit: Int) {
  runsOrError(limit: $limit) {
    ... on Runs {
      results {
        runId status jobName parentRunId rootRunId startTime endTime
        tags { key value }
        assetSelection { path }
        stepStats { stepKey status }
      }
    }
  }
}
"""
_OUTCOMES = """
query Outcomes($limit: Int) {
  runsOrError(limit: $limit) {
    ... on Runs { results { runId status jobName parentRunId tags { key value } } }
  }
}
"""
_OVER = ("SUCCESS", "FAILURE", "CANCELED")
_ASSETS = """
query Assets {
  assetNodes {
    assetKey { path }
    isPartitioned
    partitionKeys
    assetMaterializations(limit: 1) { runId timestamp partition }
  }
}
"""

_REPOSITORY = "__repository__"
_SELECTOR = {"repositoryName": _REPOSITORY, "repositoryLocationName": "selectit"}
_START_SCHEDULE = """
mutation Start($selector: ScheduleSelector!) {
  startSchedule(scheduleSelector: $selector) {
    __typename
    ... on ScheduleStateResult { scheduleState { id } }
    ... on PythonError { message }
  }
}
"""
_STOP_SCHEDULE = """
mutation Stop($id: String!) {
  stopRunningSchedule(id: $id) { __typename ... on PythonError { message } }
}
"""
_TICKS = """
query Ticks($selector: InstigationSelector!) {
  instigationStateOrError(instigationSelector: $selector) {
    ... on InstigationState { ticks(limit: 5000) { status timestamp runIds } }
  }
}
"""


class GraphQL:
    """Dagster's web server at one address; each call waits for it to come back.

    Parameters
    ----------
    address:
        Such as ``http://127.0.0.1:3000``.
    patience:
        Seconds for which an unreachable server is asked again.
    """

    def __init__(self, address: str, patience: float = 120.0) -> None:
        self.address = address
        self.patience = patience
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Return the data of an answer; asks again while the server cannot be reached."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310 - http on loopback
            f"{self.address}/graphql", body, {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + self.patience
        while True:
            try:
                with self._opener.open(request, timeout=60) as answer:
                    found = json.loads(answer.read())
                if not found.get("errors"):
                    return dict(found["data"])
                problem: object = found["errors"]
            except (OSError, urllib.error.URLError, ValueError) as error:
                problem = error
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.address} does not answer: {problem}")
            time.sleep(1)

    def launch(
        self,
        *,
        assets: list[list[str]] | None = None,
        job: str = "__ASSET_JOB",
        partition: str | None = None,
        location: str = "selectit",
    ) -> str:
        """Start a job, or some of the assets, of a code location and return the run's id.

        A launch that was refused because the code server was away is tried again: nothing
        was started then.
        """
        place = {"repositoryName": _REPOSITORY, "repositoryLocationName": location}
        selector: dict[str, Any] = {"jobName": job, **place}
        if assets is not None:
            selector["assetSelection"] = [{"path": path} for path in assets]
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        params = {"selector": selector, "executionMetadata": {"tags": tags}}
        deadline = time.monotonic() + self.patience
        while True:
            answer = self.ask(_LAUNCH, params=params)["launchRun"]
            if answer["__typename"] == "LaunchRunSuccess":
                return str(answer["run"]["runId"])
            if time.monotonic() > deadline:
                raise RuntimeError(f"{job} cannot be started: {answer}")
            time.sleep(2)

    def runs(self, limit: int = 500) -> list[dict[str, Any]]:
        """Return the newest runs, newest first."""
        return list(self.ask(_RUNS, limit=limit)["runsOrError"]["results"])

    def unfinished(self) -> list[dict[str, Any]]:
        """Return the runs that are queued or under way, and the failed that will start again.

        Dagster gives a failed run up for good when the database or the code server was away at
        the moment of its restart: one before a later successful run of its job is not waited for.
        """
        runs = self.ask(_OUTCOMES, limit=2000)["runsOrError"]["results"]
        known = {run["parentRunId"] for run in runs}
        succeeded: set[str] = set()
        found = []
        for run in runs:  # newest first
            if run["status"] == "SUCCESS":
                succeeded.add(run["jobName"])
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            waits = run["status"] == "FAILURE" and tags.get("dagster/will_retry") == "true"
            waits = waits and run["runId"] not in known and run["jobName"] not in succeeded
            if run["status"] not in _OVER or waits:
                found.append(run)
        return found

    def assets(self) -> list[dict[str, Any]]:
        """Return the assets with their newest materialisation."""
        return list(self.ask(_ASSETS)["assetNodes"])

    def start_schedule(self, name: str) -> str:
        """Turn a schedule on and return its id."""
        answer = self.ask(_START_SCHEDULE, selector={**_SELECTOR, "scheduleName": name})
        found = answer["startSchedule"]
        if found["__typename"] != "ScheduleStateResult":
            raise RuntimeError(f"{name} cannot be turned on: {found}")
        return str(found["scheduleState"]["id"])

    def stop_schedule(self, identifier: str) -> None:
        """Turn a schedule off."""
        found = self.ask(_STOP_SCHEDULE, id=identifier)["stopRunningSchedule"]
        if found["__typename"] != "ScheduleStateResult":
            raise RuntimeError(f"the schedule cannot be turned off: {found}")

    def ticks(self, name: str) -> list[dict[str, Any]]:
        """Return a schedule's ticks, newest first."""
        found = self.ask(_TICKS, selector={**_SELECTOR, "name": name})
        return list(found["instigationStateOrError"]["ticks"])

    def outcome(self, run_id: str, timeout: float) -> dict[str, Any]:
        """Wait for a run, or for its last automatic retry, and return that one.

        A failed run that will be retried, or whose retry is not known yet, is waited for.
        """
        deadline = time.monotonic() + timeout
        settled = 0.0
        while True:
            chain = [r for r in self.runs() if run_id in (r["runId"], r["rootRunId"])]
            last = chain[0] if chain else None
            if last and last["status"] == "SUCCESS":
                return last
            if last and last["status"] in ("FAILURE", "CANCELED"):
                settled = settled or time.monotonic()
                will_retry = {t["key"]: t["value"] for t in last["tags"]}.get("dagster/will_retry")
                if will_retry != "true" and time.monotonic() - settled > 60:
                    return last
            else:
                settled = 0.0
            if time.monotonic() > deadline:
                raise RuntimeError(f"run {run_id} is still {last and last['status']}")
            time.sleep(1)
