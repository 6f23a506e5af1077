"""Dagster's launcher and in-process executor, with a watch over the process of each run.

``dagster.yaml`` names the launcher. Runs are processes below the code server, which has the models,
the GPU and the home. If both die, the daemon's run monitoring asks this launcher, marks the run as
failed, and Dagster's run retries start it again from the steps that had not succeeded; each engine
goes on from its journal.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._serdes import ConfigurableClassData

from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration import run_monitoring
from selectit_dagster.orchestration.asset_keys import experiments_of

_WAIT_SECONDS = 2.0
_AWAY_SECONDS = 120.0  # a server that is started anew has another address, or none


class WatchedRunLauncher(DefaultRunLauncher):
    """Starts runs in the code server and can tell whether they are still worked on.

    Parameters
    ----------
    home:
        Root of the home that the code server works in, as this process sees it; default: the
        instance's own folder lies in it.
    """

    def __init__(
        self, home: str | None = None, inst_data: ConfigurableClassData | None = None
    ) -> None:
        super().__init__(inst_data=inst_data)
        self._home = home
        self._dead_since: dict[str, float] = {}

    @property
    def home(self) -> Path:
        """Root of the home."""
        return Path(self._home or Path(self._instance.root_directory).parent)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Return the settings that ``dagster.yaml`` may have."""
        return {
            "home": dg.Field(dg.StringSource, is_required=False, description="root of the home")
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "WatchedRunLauncher":
        """Build the launcher from ``dagster.yaml``."""
        return cls(home=config_value.get("home"), inst_data=inst_data)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: run monitoring may ask."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Tell whether a started run is still worked on."""
        record = self._instance.get_run_record_by_id(run.run_id)
        started = record.start_time if record else None
        if run_monitoring.is_alive(self.home, run.run_id, started) or self._waits(run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process has ended")

    def _waits(self, run_id: str) -> bool:
        """Tell whether the code server, which is to start a dead run again, will be back soon.

        Dagster gives a run up for good that fails while the server is away.
        """
        if (client := self._get_grpc_client_for_termination(run_id)) is None:
            return False
        since = self._dead_since.setdefault(run_id, time.monotonic())
        try:
            client.ping("")
        except DagsterUserCodeUnreachableError:
            return time.monotonic() - since < _AWAY_SECONDS
        return False


class WatchedExecutor(InProcessExecutor):
    """Dagster's in-process executor, whose process is known as the worker of its run.

    Runs of the same experiment wait for one another, and for ``selectit run``. ``folders`` are the
    experiments' by their names; none for a run that its caller keeps apart from others.
    """

    def __init__(self, home: Path, folders: Mapping[str, Path]) -> None:
        super().__init__(RetryMode.ENABLED)
        self.home, self.folders = home, folders

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:  # noqa: ANN401
        """Execute the plan and yield its events."""
        run = plan_context.dagster_run
        with contextlib.ExitStack() as stack:
            stack.enter_context(run_monitoring.working(self.home, run.run_id))
            for name in experiments_of(run):
                if (folder := self.folders.get(name)) is not None:
                    stack.enter_context(_held(folder, plan_context.instance, run))
            yield from super().execute(plan_context, execution_plan)


@contextlib.contextmanager
def _held(folder: Path, instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[None]:
    """Hold an experiment's folder; wait for whoever holds it, and say who that is."""
    told = ""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(folder, f"Dagster run {run.run_id[:8]}"))
            except UserError as error:
                if error.message != told:
                    instance.report_engine_event(f"Waiting: {error.message}", run)
                told = error.message
            else:
                yield
                return
        time.sleep(_WAIT_SECONDS)


def watched_executor(home: Path, folders: Mapping[str, Path]) -> dg.ExecutorDefinition:
    """Return the executor of a code location; see :class:`WatchedExecutor`."""
    return dg.ExecutorDefinition(
        name="watched_executor", executor_creation_fn=lambda _: WatchedExecutor(home, folders)
    )
