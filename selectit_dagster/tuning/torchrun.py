"""Training on several devices: torchrun in a subprocess that is followed to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import UserError
from selectit_dagster.progress import Progress

if TYPE_CHECKING:
    from selectit_dagster.experiment import TuningSection

PREFIX = "selectit-progress "
_KEPT_LINES = 40


def train_distributed(
    dataset: Path, tuning: TuningSection, seed: int, out: Path, progress: Progress
) -> dict[str, Any]:
    """Train with ``tuning.processes`` processes under torchrun and return the facts.

    The workers stop when this process does: they watch a pipe that only it holds open.

    Raises
    ------
    UserError
        What a worker raised as one.
    RuntimeError
        When the workers failed otherwise, with the end of what they wrote.
    """
    from selectit_dagster.tuning.training import FACTS, RESUME

    folder = out / RESUME
    request = folder / "worker.json"
    for name in (FACTS, "error.json"):
        (folder / name).unlink(missing_ok=True)
    write_json(
        request,
        {
            "dataset": str(dataset.resolve()),
            "tuning": tuning.model_dump(mode="json"),
            "seed": seed,
            "out": str(out.resolve()),
        },
    )
    _follow(_command(tuning.processes, request), folder, progress)
    facts: dict[str, Any] = read_json(folder / FACTS)
    return facts


def _command(processes: int, request: Path) -> list[str]:
    # standalone: a rendezvous of its own on a free port of this machine
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worker = ["-m", "selectit_dagster.tuning.torchrun_worker", str(request)]
    return [*launcher, f"--nproc-per-node={processes}", *worker]


def _follow(command: list[str], folder: Path, progress: Progress) -> None:
    """Run ``command``, pass its progress on, and raise what it failed with."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    said: deque[str] = deque(maxlen=_KEPT_LINES)
    listener = Thread(target=_keep, args=(process.stderr, said), daemon=True)
    listener.start()
    try:
        for line in process.stdout or ():
            if line.startswith(PREFIX):
                report = json.loads(line.removeprefix(PREFIX))
                progress.update(report["done"], report["total"], **report["figures"])
            else:
                said.append(line.rstrip())
        code = process.wait()
        listener.join(timeout=5)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code == 0:
        return
    if (folder / "error.json").exists():
        error = read_json(folder / "error.json")
        raise UserError(error["message"], hint=error["hint"])
    raise RuntimeError(f"the training processes ended with status {code}:\n" + "\n".join(said))


def _keep(stream: IO[str] | None, said: deque[str]) -> None:
    for line in stream or ():
        said.append(line.rstrip())
