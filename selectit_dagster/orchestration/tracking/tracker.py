"""The door to MLflow: a run for each attempt at an asset, under its Dagster run's parent."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from selectit_dagster.errors import UserError, redacted
from selectit_dagster.orchestration.tracking.mlflow_pages import Pages
from selectit_dagster.orchestration.tracking.monitor import sampled
from selectit_dagster.orchestration.tracking.parents import ParentRuns
from selectit_dagster.orchestration.tracking.tracked_run import TrackedRun


class Tracker(ParentRuns, Pages):
    """The one door to MLflow; :class:`TrackingStore` says its parameters."""

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
        if not self.enabled:
            yield TrackedRun(self, None)
            return
        run_id = self.attempt("open a run", self._open_child, parent, name, tags)
        if run_id is None and self.required:
            raise UserError(
                f"MLflow at {redacted(self.uri)} cannot be used, and tracking.required is true",
                hint=f"start it, or set tracking.required: false; {self.failures_file} says more",
            )
        tracked = TrackedRun(self, run_id, self.link(run_id) if run_id else None)
        status = "KILLED"
        try:
            with sampled(self, run_id):
                yield tracked
            status = "FINISHED"
        except Exception as error:
            status = "FAILED"
            tracked.tags({"selectit.error": redacted(str(error))[:4000]})
            raise
        finally:
            if run_id is not None:
                self.attempt("close a run", lambda: self.client.set_terminated(run_id, status))

    def _open_child(self, parent: str | None, name: str, tags: dict[str, str]) -> str:
        nested = {"mlflow.parentRunId": parent} if parent else {}
        commit = {"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}
        run = self.client.create_run(
            self.experiment_id,
            run_name=name,
            tags={"selectit.level": "asset", **nested, **commit, **tags},
        )
        return str(run.info.run_id)


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
