"""Training through Ray Train: the processes of torchrun, placed by a Ray cluster.

Each process runs the same :func:`~selectit_dagster.tuning.training.train` as under torchrun,
and goes on from the same resume points, so Ray only places the processes and starts them again
when one is lost. They share the checkpoint's folder: on a cluster of several machines it must
lie on a disk that all of them see, which each process checks first.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.inference.ray_cluster import connected
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.experiment import RaySection, TuningSection

_NOTE, _ERROR, _PROGRESS = "ray.json", "error.json", "progress.json"
_EVERY_SECONDS = 2.0


def check_division(tuning: TuningSection, section: RaySection) -> None:
    """Check what can be checked before the cluster is asked.

    Raises
    ------
    UserError
        When the batch does not divide over the processes.
    """
    if tuning.batch_size % tuning.processes:
        raise UserError(
            f"tuning.batch_size {tuning.batch_size} does not divide over {tuning.processes} "
            "processes",
            hint="make batch_size a multiple of processes",
        )
    if tuning.method == "qlora" and not section.gpus_per_worker:
        raise UserError(
            "tuning.method: qlora needs GPUs, and ray.gpus_per_worker is 0",
            hint="set ray.gpus_per_worker: 1, or another method",
        )


def train_on_ray(
    dataset: Path,
    tuning: TuningSection,
    seed: int,
    out: Path,
    progress: Progress,
    section: RaySection,
) -> dict[str, Any]:
    """Train with ``tuning.processes`` processes under Ray Train and return the facts.

    Raises
    ------
    UserError
        What a process raised as one, or when the processes do not see ``out``.
    TransientError
        When processes were lost more often than ``ray.retries``.
    """
    from selectit_dagster.tuning.training import FACTS, RESUME

    check_division(tuning, section)
    folder = (out / RESUME).resolve()
    for name in (FACTS, _ERROR, _PROGRESS):
        (folder / name).unlink(missing_ok=True)
    device = "cuda" if section.gpus_per_worker else "cpu"
    base = tuning.base_model.model_copy(update={"device": device})
    settings = {
        "note": uuid.uuid4().hex,
        "folder": str(folder),
        "dataset": str(dataset.resolve()),
        "tuning": tuning.model_copy(update={"base_model": base}).model_dump(mode="json"),
        "seed": seed,
        "out": str(out.resolve()),
    }
    write_json(folder / _NOTE, {"note": settings["note"]})
    with connected(section), _followed(folder / _PROGRESS, progress):
        _fit(settings, tuning.processes, section, folder)
    if (folder / _ERROR).exists():
        error = read_json(folder / _ERROR)
        raise UserError(error["message"], hint=error["hint"])
    facts: dict[str, Any] = read_json(folder / FACTS)
    return facts


def _fit(settings: dict[str, Any], processes: int, section: RaySection, folder: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    gpus = section.gpus_per_worker
    trainer = TorchTrainer(
        train_process,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=processes,
            use_gpu=bool(gpus),
            resources_per_worker={
                "CPU": section.cpus_per_worker,
                **({"GPU": gpus} if gpus else {}),
            },
        ),
        run_config=RunConfig(
            name="tuning",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=section.retries),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if (folder / _ERROR).exists():
            # what the first process noted the others could only fail with
            return
        causes = getattr(error, "worker_failures", {}).values()
        told = [str(cause) for cause in causes if _UNSEEN in str(cause)]
        if told:
            raise UserError(
                f"a process of tuning does not see {folder} on its node",
                hint="put the home onto a disk that every node sees (--home)",
            ) from error
        raise TransientError(f"training through Ray failed: {str(error)[-2000:]}") from error


_UNSEEN = "a process of tuning does not see the checkpoint's folder on its node"


def train_process(settings: dict[str, Any]) -> None:
    """Train one process's share; Ray Train has set its rank and opened the process group."""
    from selectit_dagster.experiment import TuningSection
    from selectit_dagster.tuning.training import train

    folder, rank = Path(settings["folder"]), int(os.environ.get("RANK", "0"))
    note = folder / _NOTE
    if not note.exists() or read_json(note)["note"] != settings["note"]:
        raise RuntimeError(_UNSEEN)
    try:
        train(
            Path(settings["dataset"]),
            TuningSection.model_validate(settings["tuning"]),
            settings["seed"],
            Path(settings["out"]),
            _Noted(folder / _PROGRESS) if rank == 0 else Silent(),
        )
    except UserError as error:
        if rank != 0:
            raise RuntimeError(str(error)) from error
        write_json(folder / _ERROR, {"message": error.message, "hint": error.hint})


class _Noted:
    """A reporter that leaves its last update in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.next_at = path, 0.0

    def update(self, done: int, total: int, **figures: float) -> None:
        """Write the update, not more often than it is read."""
        if time.monotonic() >= self.next_at or done >= total:
            self.next_at = time.monotonic() + _EVERY_SECONDS
            write_json(self.path, {"done": done, "total": total, "figures": figures})


@contextlib.contextmanager
def _followed(path: Path, progress: Progress) -> Any:  # noqa: ANN401 - a context manager
    """Pass on, while the block runs, what the first process notes."""
    stop = Event()

    def follow() -> None:
        seen = None
        while not stop.wait(_EVERY_SECONDS):
            with contextlib.suppress(UserError):
                found = read_json(path)
                if found != seen:
                    seen = found
                    progress.update(found["done"], found["total"], **found["figures"])

    thread = Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
