"""Dagster's launcher and executor of this machine, with a watch over the processes of a run.

For a deployment in which the code server is a container of its own; ``dagster.yaml`` names the
launcher. Runs are processes below the code server, which has the models, the GPU and the home.
If the code server or a run's process dies, the daemon's run monitoring asks this launcher,
marks the run as failed, and Dagster's run retries start it again from the steps that had not
succeeded; each engine goes on from its journal.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._serdes import ConfigurableClassData

from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration import run_monitoring
from selectit_dagster.orchestration.asset_keys import experiments_of

_WAIT_SECONDS = 2.0


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
        if run_monitoring.is_alive(self.home, run.run_id, started):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process has ended")


class WatchedExecutor(dg.Executor):
    """Dagster's in-process executor, whose process is known as the worker of its run.

    Stages that load a model still have processes of their own; see ``isolated``. Runs of the
    same experiment wait for one another, and for ``selectit run``.
    """

    def __init__(self, inner: dg.Executor, home: Path, folders: Mapping[str, Path]) -> None:
        self.inner, self.home, self.folders = inner, home, folders

    @property
    def retries(self) -> Any:  # noqa: ANN401 - Dagster's own type is not public
        """The inner executor's retry mode."""
        return self.inner.retries

    @property
    def step_dependency_config(self) -> Any:  # noqa: ANN401 - Dagster's own type is not public
        """The inner executor's rule about steps that wait for others."""
        return self.inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:  # noqa: ANN401
        """Execute the plan and yield its events."""
        run = plan_context.dagster_run
        run_monitoring.forget_old(self.home)
        with contextlib.ExitStack() as stack:
            stack.enter_context(run_monitoring.working(self.home, run.run_id))
            stack.enter_context(run_monitoring.isolating(run.run_id))
            for name in experiments_of(run):
                if (folder := self.folders.get(name)) is not None:
                    told = _teller(plan_context.instance, run)
                    stack.enter_context(_held(folder, f"Dagster run {run.run_id[:8]}", told))
            yield from self.inner.execute(plan_context, execution_plan)
        run_monitoring.forget(self.home, run.run_id)


def _teller(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Callable[[str], None]:
    return lambda text: instance.report_engine_event(text, run) and None


@contextlib.contextmanager
def _held(folder: Path, purpose: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold an experiment's folder; wait for whoever holds it, and say who that is."""
    told = ""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(folder, purpose))
            except UserError as error:
                if error.message != told:
                    tell(f"Waiting: {error.message}")
                told = error.message
            else:
                yield
                return
        time.sleep(_WAIT_SECONDS)


def watched_executor(home: Path, folders: Mapping[str, Path]) -> dg.ExecutorDefinition:
    """Return the executor of the code location; ``folders`` are the experiments' by their names."""
    default = dg.in_process_executor

    def create(context: dg.InitExecutorContext) -> WatchedExecutor:
        build = default.executor_creation_fn
        assert build is not None  # noqa: S101 - Dagster's own definition has one
        return WatchedExecutor(build(context), home, folders)

    return dg.ExecutorDefinition(
        name="watched_executor",
        config_schema=default.config_schema.as_field(),
        requirements=default.get_requirements,
        executor_creation_fn=create,
        description=default.description,
    )
