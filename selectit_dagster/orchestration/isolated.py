"""A stage that loads a model, in a process of its own below the run's process.

The run's process makes the cheap stages itself: a process for each would cost more than their
work. What a model leaves in memory, and a process that the system kills for its memory, are kept
out of it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import Manifest, require_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.run_monitoring import ended_with_parent, helping
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Progress

LOGGER = logging.getLogger("selectit_dagster")
_SECONDS = 0.5  # between two reports of progress
_END_SECONDS = 60.0  # for what is under way to be stored


@dataclass(frozen=True)
class Work:
    """Which stage of which experiment is made, as another process can build it again."""

    experiment_file: str
    root: str
    run_id: str
    stage: tuple[str, str | None, Any]


def run_isolated(stage: Stage, pipeline: Pipeline, run_id: str, progress: Progress) -> Manifest:
    """Make a stage's artefact in a process of its own and return its manifest.

    Raises
    ------
    UserError
        When the process was killed; and whatever the stage itself raises.
    """
    work = Work(
        str(pipeline.experiment_file),
        str(pipeline.home.root),
        run_id,
        (stage.asset, stage.partition, stage.overrides),
    )
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, sender))
    process.start()
    sender.close()
    try:
        for kind, *values in _messages(receiver):
            if kind == "progress":
                progress.update(values[0], values[1], **values[2])
            elif kind == "log":
                LOGGER.log(*values)
            else:
                raise values[0]
    finally:
        _end(process)
    if process.exitcode:
        raise UserError(
            f"the process that made {stage.title} ended with {_reason(process.exitcode)}",
            hint="most often memory: lower max_batch_tokens or micro_batch_size, or use a larger "
            "machine; what was complete is kept",
        )
    return require_manifest(stage.folder, made_by=stage.asset)


def _messages(receiver: Connection) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(EOFError):
        while True:
            yield receiver.recv()


def _end(process: Any) -> None:  # noqa: ANN401 - a process of the spawn context
    process.join(1)
    if process.is_alive():
        process.terminate()
        process.join(_END_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Sender(logging.Handler):
    """Sends progress, log records and the error to the run's process."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(logging.INFO)
        self.connection, self.next_at = connection, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        self.connection.send(("log", record.levelno, record.getMessage()))

    def update(self, done: int, total: int, **figures: float) -> None:
        """Send progress, now and then, and where it ends."""
        if (now := time.monotonic()) >= self.next_at or done >= total:
            self.next_at = now + _SECONDS
            self.connection.send(("progress", done, total, figures))

    def fail(self, error: BaseException) -> None:
        """Send an error as what it is, where it can be sent."""
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own object, made here
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        self.connection.send(("error", error))


def _work(work: Work, connection: Connection) -> None:
    """Make the stage; the main function of the process."""
    sender = _Sender(connection)
    LOGGER.addHandler(sender)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    root = Path(work.root)
    with ended_with_parent(), helping(root, work.run_id):
        try:
            experiment = load_experiment(Path(work.experiment_file))
            pipeline = Pipeline(experiment, Home(root, experiment.name))
            pipeline.stage(*work.stage).run(sender)
        except Exception as error:
            sender.fail(error)
