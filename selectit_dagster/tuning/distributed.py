"""Training in several processes: started by torchrun on this machine, or placed by Ray Train.

Each process runs :func:`~selectit_dagster.tuning.training.train` on its share and goes on from the
same resume points; what starts them only places them. They share the checkpoint's folder: on a
cluster of several machines it must lie on a disk that all of them see, which each process checks
first.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.progress import Progress
from selectit_dagster.tuning.training import FACTS, RESUME
from selectit_dagster.tuning.training_plan import require_division
from selectit_dagster.tuning.training_process import (
    ERROR,
    PROGRESS,
    REQUEST,
    UNSEEN,
    train_process,
)

if TYPE_CHECKING:
    from selectit_dagster.experiment import RaySection, TuningSection

_OUTPUT = "processes.log"
_KEPT_BYTES = 4000
_LOOK_SECONDS = 0.1


def train_distributed(
    dataset: Path,
    tuning: TuningSection,
    seed: int,
    out: Path,
    progress: Progress,
    ray: RaySection | None = None,
) -> dict[str, Any]:
    """Train with ``tuning.processes`` processes and return the facts.

    Parameters
    ----------
    ray:
        The cluster that places them; None for torchrun on this machine.

    Raises
    ------
    UserError
        What a process raised as one, or when the processes do not see ``out``.
    TransientError
        When Ray lost processes more often than ``ray.retries``.
    RuntimeError
        When the processes failed otherwise, with the end of what they wrote.
    """
    require_division(tuning)
    if ray is not None:
        tuning = _on_cluster(tuning, ray)
    folder = (out / RESUME).resolve()
    for name in (FACTS, ERROR, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    request = {
        "note": uuid.uuid4().hex,
        "folder": str(folder),
        "dataset": str(dataset.resolve()),
        "tuning": tuning.model_dump(mode="json"),
        "seed": seed,
        "out": str(out.resolve()),
    }
    write_json(folder / REQUEST, request)
    with followed(folder / PROGRESS, progress):
        if ray is None:
            _run_here(tuning.processes, folder)
        else:
            _run_on_ray(request, tuning.processes, ray, folder)
    facts: dict[str, Any] = read_json(folder / FACTS)
    return facts


def _raise_refusal(folder: Path) -> None:
    """Raise what a process left as the user's to mend, if it did."""
    if (folder / ERROR).exists():
        error = read_json(folder / ERROR)
        raise UserError(error["message"], hint=error["hint"])


@contextlib.contextmanager
def followed(path: Path, progress: Progress) -> Iterator[None]:
    """Pass on, while the block runs, the updates that the first process writes."""
    stop, seen = Event(), 0

    def read() -> None:
        nonlocal seen
        if not path.exists():
            return
        with path.open("rb") as lines:
            lines.seek(seen)
            for line in lines:
                if line.endswith(b"\n"):  # else it is still being written
                    seen += len(line)
                    update = json.loads(line)
                    progress.update(update["done"], update["total"], **update["figures"])

    def follow() -> None:
        while not stop.wait(_LOOK_SECONDS):
            read()

    thread = Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        read()


# --- this machine ---------------------------------------------------------------------------------


def _run_here(processes: int, folder: Path) -> None:
    """Run torchrun to its end; its processes stop when this one does.

    They watch a pipe that only this process holds open.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        "--standalone",  # a rendezvous of its own on a free port of this machine
        f"--nproc-per-node={processes}",
        *("-m", "selectit_dagster.tuning.training_process", str(folder / REQUEST)),
    ]
    with (folder / _OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code:
        _raise_refusal(folder)
        said = (folder / _OUTPUT).read_bytes()[-_KEPT_BYTES:].decode("utf-8", "replace")
        raise RuntimeError(f"the training processes ended with status {code}:\n{said}")


# --- a cluster ------------------------------------------------------------------------------------


def _on_cluster(tuning: TuningSection, section: RaySection) -> TuningSection:
    """Return the settings as a process of the cluster has them.

    Raises
    ------
    UserError
        When they do not go with the cluster's shape.
    """
    if tuning.method == "qlora" and not section.gpus_per_worker:
        raise UserError(
            "tuning.method: qlora needs GPUs, and ray.gpus_per_worker is 0",
            hint="set ray.gpus_per_worker: 1, or another method",
        )
    device = "cuda" if section.gpus_per_worker else "cpu"
    base = tuning.base_model.model_copy(update={"device": device})
    return tuning.model_copy(update={"base_model": base})


def _run_on_ray(request: dict[str, Any], processes: int, section: RaySection, folder: Path) -> None:
    from selectit_dagster.inference.ray_cluster import connected

    gpus = section.gpus_per_worker
    resources = {"CPU": float(section.cpus_per_worker), **({"GPU": gpus} if gpus else {})}
    with connected(section):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError

        trainer = TorchTrainer(
            train_process,
            train_loop_config=request,
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=processes, use_gpu=bool(gpus), resources_per_worker=resources
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
            # what the first process noted the others could only fail with
            _raise_refusal(folder)
            if any(UNSEEN in str(cause) for cause in error.worker_failures.values()):
                raise UserError(
                    f"a process of tuning does not see {folder} on its node",
                    hint="put the home onto a disk that every node sees (--home)",
                ) from error
            message = f"training through Ray failed: {str(error)[-2000:]}"
            raise TransientError(message) from error
    _raise_refusal(folder)
