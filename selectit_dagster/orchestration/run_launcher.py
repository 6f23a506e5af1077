"""Dagster's default launcher and executor, with a watch over the processes of a run.

For a deployment in which the code server is a container of its own; ``dagster.yaml`` names the
launcher. Runs are processes below the code server, which has the models, the GPU and the home.
If the code server or a run's process dies, the daemon's run monitoring asks this launcher,
marks the run as failed, and Dagster's run retries start it again from the steps that had not
succeeded; each engine goes on from its journal.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._serdes import ConfigurableClassData

from selectit_dagster.orchestration import run_monitoring


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
    """An executor whose process is known as a worker of its run."""

    def __init__(self, inner: dg.Executor, home: Path) -> None:
        self.inner = inner
        self.home = home

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
        run_id = plan_context.run_id
        run_monitoring.forget_old(self.home)
        with run_monitoring.working(self.home, run_id):
            yield from self.inner.execute(plan_context, execution_plan)
        run_monitoring.forget(self.home, run_id)


def watched_executor(home: Path) -> dg.ExecutorDefinition:
    """Return Dagster's default executor (steps in processes of their own), watched."""
    default = dg.multi_or_in_process_executor

    def create(context: dg.InitExecutorContext) -> WatchedExecutor:
        build = default.executor_creation_fn
        assert build is not None  # noqa: S101 - Dagster's own definition has one
        return WatchedExecutor(build(context), home)

    return dg.ExecutorDefinition(
        name="watched_executor",
        config_schema=default.config_schema.as_field(),
        requirements=default.get_requirements,
        executor_creation_fn=create,
        description=default.description,
    )
