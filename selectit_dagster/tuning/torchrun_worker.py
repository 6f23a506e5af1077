"""One process of a distributed training run; started by torchrun, see ``launch``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Thread

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import TuningSection
from selectit_dagster.tuning.torchrun import PREFIX


class Lines:
    """A reporter that writes one line per update on stdout, for the process that follows."""

    def update(self, done: int, total: int, **figures: float) -> None:
        """Write the update."""
        report = json.dumps({"done": done, "total": total, "figures": figures})
        sys.stdout.write(f"{PREFIX}{report}\n")
        sys.stdout.flush()


def main() -> int:
    """Train this process's share of the request that the first argument names."""
    # stdin is a pipe that the starting process holds open: at its end, that process is gone
    Thread(target=_stop_with_parent, daemon=True).start()
    path = Path(sys.argv[1])
    request = read_json(path)
    from selectit_dagster.tuning.training import train

    try:
        train(
            Path(request["dataset"]),
            TuningSection.model_validate(request["tuning"]),
            request["seed"],
            Path(request["out"]),
            Lines(),
        )
    except UserError as error:
        write_json(path.with_name("error.json"), {"message": error.message, "hint": error.hint})
        return 2
    return 0


def _stop_with_parent() -> None:
    # not through sys.stdin, whose lock would abort the interpreter when it ends
    while os.read(0, 1):
        pass
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
