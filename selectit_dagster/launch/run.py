"""``selectit run``: materialise what is not current, in order, through Dagster in this process.

A stage is current when its artefact is complete, was made from what the experiment file
asks for now, and Dagster knows of it. Everything else is materialised; each engine resumes
from what it stored, so a second start after an interruption goes on where it stopped. The
runs are ordinary ones of the code location's jobs: on Dagster's timeline, and re-executable
from the page.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG

from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.artefacts.manifest import MANIFEST
from selectit_dagster.definitions import build_defs
from selectit_dagster.errors import UserError
from selectit_dagster.launch.preflight import open_pipeline, preflight
from selectit_dagster.orchestration.asset_keys import LOCATION, Access
from selectit_dagster.orchestration.automation import job_of
from selectit_dagster.orchestration.instance import newest, open_instance
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.resources import make_tracker
from selectit_dagster.orchestration.run_cleanup import close_run, fail_abandoned, failed_steps
from selectit_dagster.orchestration.run_launcher import watched_executor
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import duration, say

_REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), "__repository__")
_INTERRUPTED = RunFailureReason.UNEXPECTED_TERMINATION.value
# our own message says what failed; Dagster's log of it is for those who look for the fault
_LEVEL = "ERROR" if os.environ.get("SELECTIT_DEBUG") else "CRITICAL"
_CONFIG = {"loggers": {"console": {"config": {"log_level": _LEVEL}}}}


class StageFailedError(UserError):
    """A stage ended with an error; ``permanent`` tells whether the user must mend something."""

    def __init__(self, message: str, *, hint: str = "", permanent: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.permanent = permanent


@dataclass
class RunOutcome:
    """What a run did."""

    pipeline: Pipeline
    materialised: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    seconds: float = 0.0
    tracking_failures: int = 0
    untracked: list[str] = field(default_factory=list)


def run_experiment(
    experiment_file: Path, home: str | Path | None = None, *, upto: str | None = None
) -> RunOutcome:
    """Materialise everything that is not current, up to and including asset ``upto``.

    Raises
    ------
    UserError
        For wrong input, and :class:`StageFailedError` for a stage that failed.
    """
    started = time.monotonic()
    pipeline = open_pipeline(experiment_file, home)
    outcome = RunOutcome(pipeline)
    preflight(pipeline)
    phases = _limited(list(pipeline.phases()), upto)
    with (
        folder_lock(pipeline.home.folder, "selectit run"),
        contextlib.closing(_Session(experiment_file, pipeline, outcome)) as session,
    ):
        for phase in phases:
            session.run_phase(phase)
    outcome.seconds = time.monotonic() - started
    return outcome


def _limited(phases: list[list[Stage]], upto: str | None) -> list[list[Stage]]:
    """Return the phases up to the last stage of asset ``upto``."""
    if upto is None:
        return phases
    stages = [(i, stage) for i, phase in enumerate(phases) for stage in phase]
    wanted = [at for at, (_, stage) in enumerate(stages) if stage.asset == upto]
    if not wanted:
        raise UserError(
            f"--upto {upto}: there is no such asset in this experiment",
            hint=f"the assets are {', '.join(dict.fromkeys(s.asset for _, s in stages))}",
        )
    kept = stages[: wanted[-1] + 1]
    return [[s for i, s in kept if i == number] for number in range(kept[-1][0] + 1)]


class _Session:
    """Dagster, opened only when something has to be made."""

    def __init__(self, experiment_file: Path, pipeline: Pipeline, outcome: RunOutcome) -> None:
        self.experiment_file, self.pipeline, self.outcome = experiment_file, pipeline, outcome
        self.access, self.tracker = Access.of(pipeline.experiment), make_tracker(pipeline)
        self.launch = uuid.uuid4().hex[:8]
        self._stack = contextlib.ExitStack()

    @cached_property
    def known(self) -> set[tuple[str, str | None]]:
        """The assets and partitions that this home's Dagster instance has seen made."""
        return {
            (stage.asset, stage.partition)
            for phase in self.pipeline.phases()
            for stage in phase
            if newest(self.instance, self.access.key(stage.asset), stage.partition) is not None
        }

    @cached_property
    def definitions(self) -> dg.Definitions:
        """The definitions of the experiment, as the code location has them."""
        for category in (dg.BetaWarning, dg.PreviewWarning):
            warnings.filterwarnings("ignore", category=category)
        root = self.pipeline.home.root
        found = build_defs(experiment_file=self.experiment_file, home=root)
        # the folder is held already, for all runs of this command
        return dg.Definitions.merge(found, dg.Definitions(executor=watched_executor(root, {})))

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        """The home's Dagster instance; what a killed process left open in it is closed."""
        instance = self._stack.enter_context(open_instance(self.pipeline.home.dagster))
        for run_id in fail_abandoned(instance, self.tracker, self.access.experiment):
            say(f"  run {run_id[:8]} had been killed; it is closed now and goes on here")
        return instance

    def close(self) -> None:
        """Close the instance."""
        self._stack.close()

    def run_phase(self, phase: list[Stage]) -> None:
        """Materialise a phase from its first stage that is not current on.

        What comes after a remade stage is asked again one by one: an artefact whose inputs came
        out the same is still current, and is left alone.
        """
        while phase:
            stage = phase[0]
            if stage.is_current() and (stage.asset, stage.partition) in self.known:
                self.outcome.current.append(stage.title)
                phase = phase[1:]
                continue
            fresh = not any((later.folder / MANIFEST).exists() for later in phase[1:])
            batch = phase if fresh else phase[:1]  # a fresh home: one run for the whole phase
            self._materialise(batch)
            phase = phase[len(batch) :]

    def _materialise(self, stages: list[Stage]) -> None:
        """Materialise stages in one Dagster run; raises StageFailedError."""
        titles = [stage.title for stage in stages]
        say(f"▸ {titles[0]}" + (f" … {titles[-1]}" if len(titles) > 1 else ""))
        started, before = time.monotonic(), len(self.tracker.failures())
        run_id = self._execute(stages)
        self.outcome.tracking_failures += len(self.tracker.failures()) - before
        if self.tracker.enabled and not self.tracker.knows(run_id):
            self.outcome.untracked += titles
        self.outcome.materialised += titles
        self.outcome.fetched += [stage.title for stage in stages if stage.was_fetched()]
        say(f"  done in {duration(time.monotonic() - started)}")
        self.known.update((stage.asset, stage.partition) for stage in stages)

    def _execute(self, stages: list[Stage]) -> str:
        """Make and execute the run of some stages; return its id."""
        instance = self.instance
        job = self.definitions.resolve_job_def(self.access.name(job_of(stages[0])))
        run = self._create_run(job, stages)
        success = False
        try:
            success = execute_run(InMemoryJob(job), run, instance).success
        finally:
            # a run that was interrupted between two steps may still hold the place of a model
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            ended = instance.get_run_by_id(run.run_id)
            if ended is not None and ended.is_finished:
                close_run(instance, ended, self.tracker)
            else:
                self.tracker.close_run(run.run_id, "KILLED")
        if not success:
            raise _failure(instance, run)
        return run.run_id

    def _create_run(self, job: dg.JobDefinition, stages: list[Stage]) -> dg.DagsterRun:
        """Create the run of the stages' job, as the page would for the same choice of assets."""
        keys = {self.access.key(stage.asset) for stage in stages}
        names = list(dict.fromkeys(stage.asset for stage in (stages[0], stages[-1])))
        partition = next((stage.partition for stage in stages if stage.partition), None)
        what = " · ".join(filter(None, (partition, " to ".join(names))))
        tags = {**self.access.tags, "selectit/launch": self.launch, "selectit/what": what}
        return self.instance.create_run_for_job(
            job.get_subset(asset_selection=keys),
            run_config=_CONFIG,
            tags={**tags, "dagster/partition": partition} if partition else tags,
            asset_selection=keys,
            remote_job_origin=_REPOSITORY.get_job_origin(job.name),
        )


def _failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Exception:
    """Return the first failed step as one message with its remedy.

    Raises
    ------
    KeyboardInterrupt
        When nothing failed but the run was interrupted: Dagster reports Ctrl-C as a failure.
    """
    for name, data in failed_steps(instance, run):
        if data.user_failure_data is not None:
            message, _, hint = (data.user_failure_data.description or "").partition("\n  hint: ")
            return StageFailedError(f"{name}: {message}", hint=hint, permanent=True)
        error: Any = data.error.cause or data.error
        if "Interrupted" in f"{error.cls_name} {error.message}":
            raise KeyboardInterrupt
        return StageFailedError(
            f"{name} failed: {error.message.strip()}",
            hint="start again to go on where it stopped; SELECTIT_DEBUG=1 shows where it failed",
            permanent=False,
        )
    ended = instance.get_run_by_id(run.run_id)
    if ended is not None and ended.tags.get(RUN_FAILURE_REASON_TAG) == _INTERRUPTED:
        raise KeyboardInterrupt
    return RuntimeError(f"{run.tags['selectit/what']} failed, and none of its steps says why")
