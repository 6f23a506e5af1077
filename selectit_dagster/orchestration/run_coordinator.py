"""Dagster's queue of runs, which keeps the runs of one experiment apart and refuses bad values.

``dagster.yaml`` names it. Of the runs that carry one experiment's tag the queue lets one through
at a time; jobs have the tag, and what is materialised from a page is given it here.
"""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._core.run_coordinator.base import SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster_shared.error import SerializableErrorInfo

from selectit_dagster.errors import UserError
from selectit_dagster.orchestration.asset_keys import EXPERIMENT_TAG, experiments_of
from selectit_dagster.orchestration.stages.overrides import BOUNDS


class ExperimentRunCoordinator(QueuedRunCoordinator):
    """Dagster's own queue, with a tag for the experiment and a look at the launchpad's values."""

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        """Put a run into the queue.

        Raises
        ------
        DagsterUserCodeProcessError
            When a value is out of its range: the launchpad shows the message and nothing else,
            and nothing starts.
        """
        run = context.dagster_run
        try:
            check_values(run.run_config)
        except UserError as error:
            told = SerializableErrorInfo(str(error), [], None)
            raise DagsterUserCodeProcessError.from_error_info(told) from error
        if EXPERIMENT_TAG not in run.tags and (names := experiments_of(run)):
            self._instance.add_run_tags(run.run_id, {EXPERIMENT_TAG: names[0]})
        return super().submit_run(context)


def check_values(run_config: Any) -> None:  # noqa: ANN401 - plain data
    """Refuse numbers of the assets' config that are out of their range.

    Raises
    ------
    UserError
        Naming the asset, the field, the value and the range.
    """
    for asset, entry in (run_config.get("ops") or {}).items():
        for name, value in ((entry or {}).get("config") or {}).items():
            if name not in BOUNDS:
                continue
            bounds = BOUNDS[name]
            for given in value.values() if isinstance(value, dict) else (value,):
                if isinstance(given, int | float) and not bounds.low <= given <= bounds.high:
                    raise UserError(
                        f"{asset.replace('__', '/')}: {name} {given} is out of its range",
                        hint=f"give a number {bounds.said}",
                    )
