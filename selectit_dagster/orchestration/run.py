"""``selectit run``: materialise what is not current, in order, through Dagster.

A stage is current when its artefact is complete, was made from what the experiment file
asks for now, and Dagster knows of it. Everything else is materialised; each engine resumes
from what it stored, so a second start after an interruption goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.address import is_address
from selectit_dagster.artefacts.files import folder_lock
from selectit_dagster.artefacts.home import open_home
from selectit_dagster.artefacts.manifest import MANIFEST
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import is_hub_name, load_experiment
from selectit_dagster.experiment.loading import HUB_KEYS, named_paths
from selectit_dagster.orchestration.instance import newest
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import duration

if TYPE_CHECKING:
    import dagster as dg

    from selectit_dagster.orchestration.asset_keys import Access


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


def say(line: str) -> None:
    """Write a line for the person at the terminal."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def open_pipeline(experiment_file: Path, home: str | Path | None) -> Pipeline:
    """Load the experiment and open its home; raises UserError for either."""
    from selectit_dagster.rating.prompts import load_prompts

    experiment = load_experiment(experiment_file)
    rating = experiment.rating
    try:
        load_prompts(rating.prompts, rating.num_prompts, rating.variant)
    except UserError as error:
        raise UserError(f"{experiment_file}: {error.message}", hint=error.hint) from error
    return Pipeline(experiment, open_home(home, experiment.name))


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
            _run_phase(session, phase)
    outcome.seconds = time.monotonic() - started
    return outcome


def preflight(pipeline: Pipeline) -> None:
    """Check that every path exists and storage can be used, before anything starts.

    Raises
    ------
    UserError
        Naming each path that does not exist, with its place in the experiment file, or what
        is wrong with the storage place.
    TransientError
        When the storage place cannot be reached.
    """
    missing = [
        f"{key}: {value} does not exist"
        for key, value in named_paths(pipeline.experiment.model_dump(mode="json"))
        if not _exists(key, value)
    ]
    if missing:
        raise UserError(
            "\n  ".join([f"experiment {pipeline.experiment.name}:", *missing]),
            hint="relative paths are relative to the experiment file's folder",
        )
    _check_benchmarks(pipeline)
    if pipeline.store is not None:
        pipeline.store.check_place()


def _exists(key: str, value: str) -> bool:
    """Tell whether a named file exists, here or at an address or on the hub where it may be."""
    last = key.rsplit(".", 1)[-1]
    if last in HUB_KEYS and is_hub_name(value):
        return True
    if last == "shots_path" and value == "lm-eval":
        return True
    if key.startswith("dataset.") and is_address(value):
        from selectit_dagster.artefacts.remote_files import exists

        return exists(value)
    if key == "dataset.path" or key.startswith("dataset.more"):
        from selectit_dagster.data.input_files import matches

        return any(path.exists() for path in matches(value))
    return Path(value).exists()


def _check_benchmarks(pipeline: Pipeline) -> None:
    """Refuse a benchmark's folder that lacks a file of the published layout."""
    from selectit_dagster.evaluation.tasks import make_task

    for benchmark in pipeline.experiment.benchmarks:
        task = make_task(benchmark)
        if task.folder is not None:
            task.files()


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


def _run_phase(session: _Session, phase: list[Stage]) -> None:
    """Materialise a phase from its first stage that is not current on.

    What comes after a remade stage is asked again one by one: an artefact whose inputs came
    out the same is still current, and is left alone.
    """
    while phase:
        if session.is_current(phase[0]):
            session.outcome.current.append(phase[0].title)
            phase = phase[1:]
            continue
        fresh = not any((stage.folder / MANIFEST).exists() for stage in phase[1:])
        batch = phase if fresh else phase[:1]  # a fresh home: one Dagster run for the whole phase
        session.materialise(batch)
        phase = phase[len(batch) :]


class _Session:
    """Dagster, opened only when something has to be made."""

    def __init__(self, experiment_file: Path, pipeline: Pipeline, outcome: RunOutcome) -> None:
        self.experiment_file, self.pipeline, self.outcome = experiment_file, pipeline, outcome
        self.launch = uuid.uuid4().hex[:8]
        self._stack = contextlib.ExitStack()

    @property
    def access(self) -> Access:
        """The experiment's names in Dagster."""
        from selectit_dagster.orchestration.asset_keys import Access

        return Access.of(self.pipeline.experiment)

    def is_current(self, stage: Stage) -> bool:
        """Tell whether the artefact is current and Dagster has its materialisation."""
        return stage.is_current() and (stage.asset, stage.partition) in self.known

    @cached_property
    def known(self) -> set[tuple[str, str | None]]:
        """The assets and partitions that this home's Dagster instance has seen made."""
        return {
            (stage.asset, stage.partition)
            for phase in self.pipeline.phases()
            for stage in phase
            if newest(self.instance, self.access.stage_key(stage), stage.partition) is not None
        }

    @cached_property
    def definitions(self) -> dg.Definitions:
        """The definitions of the experiment, as the code location has them."""
        import dagster as dg

        from selectit_dagster.definitions import build_defs
        from selectit_dagster.orchestration.run_launcher import watched_executor

        root = self.pipeline.home.root
        found = build_defs(experiment_file=self.experiment_file, home=root)
        # the folder is held already, for all runs of this command
        return dg.Definitions.merge(found, dg.Definitions(executor=watched_executor(root, {})))

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        """The home's Dagster instance; what a killed process left open in it is closed."""
        from selectit_dagster.orchestration.instance import open_instance
        from selectit_dagster.orchestration.resources import make_tracker
        from selectit_dagster.orchestration.run_cleanup import fail_abandoned

        instance = self._stack.enter_context(open_instance(self.pipeline.home.dagster))
        tracker = make_tracker(self.pipeline)
        for run_id in fail_abandoned(instance, tracker, self.access.experiment):
            say(f"  run {run_id[:8]} had been killed; it is closed now and goes on here")
        return instance

    def close(self) -> None:
        """Close the instance."""
        self._stack.close()

    def materialise(self, stages: list[Stage]) -> None:
        """Materialise stages in one Dagster run; raises StageFailedError."""
        from selectit_dagster.orchestration.in_process import execute

        titles = [stage.title for stage in stages]
        say(f"▸ {titles[0]}" + (f" … {titles[-1]}" if len(titles) > 1 else ""))
        started = time.monotonic()
        failures, tracked = execute(
            self.instance, self.definitions, self.pipeline, stages, self.launch
        )
        self.outcome.tracking_failures += failures
        self.outcome.untracked += [] if tracked else titles
        self.outcome.materialised += titles
        self.outcome.fetched += [stage.title for stage in stages if stage.was_fetched()]
        say(f"  done in {duration(time.monotonic() - started)}")
        self.known.update((stage.asset, stage.partition) for stage in stages)
