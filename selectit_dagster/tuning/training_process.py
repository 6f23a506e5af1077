"""One process of a distributed training run, as torchrun and Ray Train start it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Thread
from typing import Any

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import TuningSection
from selectit_dagster.progress import Silent

REQUEST, ERROR, PROGRESS = "worker.json", "error.json", "progress.jsonl"
UNSEEN = "a process of tuning does not see the checkpoint's folder on its node"


class ProgressFile:
    """A reporter that appends one line per update to a file, for the process that follows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def update(self, done: int, total: int, **figures: float) -> None:
        """Write the update."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"done": done, "total": total, "figures": figures}) + "\n")


def train_process(request: dict[str, Any]) -> None:
    """Train one process's share; its rank is in the environment.

    A refusal of the first process is left in the folder, those of the others are raised.
    """
    from selectit_dagster.tuning.training import train

    folder, first = Path(request["folder"]), os.environ.get("RANK", "0") == "0"
    note = folder / REQUEST
    if not note.exists() or read_json(note)["note"] != request["note"]:
        raise RuntimeError(UNSEEN)
    try:
        train(
            Path(request["dataset"]),
            TuningSection.model_validate(request["tuning"]),
            request["seed"],
            Path(request["out"]),
            ProgressFile(folder / PROGRESS) if first else Silent(),
        )
    except UserError as error:
        if not first:
            raise RuntimeError(str(error)) from error
        write_json(folder / ERROR, {"message": error.message, "hint": error.hint})


def main() -> int:
    """Train this process's share of the request that the first argument names."""
    # stdin is a pipe that the starting process holds open: at its end, that process is gone
    Thread(target=_stop_with_parent, daemon=True).start()
    path = Path(sys.argv[1])
    train_process(read_json(path))
    return 2 if path.with_name(ERROR).exists() else 0


def _stop_with_parent() -> None:
    # not through sys.stdin, whose lock would abort the interpreter when it ends
    while os.read(0, 1):
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
