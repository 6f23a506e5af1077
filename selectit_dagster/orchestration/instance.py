"""The Dagster instance of a home: storage, pools, monitoring, logs."""

from __future__ import annotations

import contextlib
import logging
import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.files import write_text
from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    import dagster as dg

_LOCKED = "database is locked"
_LOCKED_SECONDS = 60.0
# One model in memory at a time: the default limit of a pool is 1. One run at a time: two over
# the same home would replace each other's inputs between their steps. Run monitoring frees what
# a killed worker held; the launcher is Dagster's own, which here also notices that a worker is
# gone. Steps are not retried by the run: assets say themselves what is transient.
DAGSTER_YAML = """\
# Written by selectit when this home was made; edit it as you like.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    default_limit: 1
    granularity: op
  runs:
    max_concurrent_runs: 1
run_launcher:
  module: selectit_dagster.orchestration.run_launcher
  class: WatchedRunLauncher
run_monitoring:
  enabled: true
  poll_interval_seconds: 30
  start_timeout_seconds: 300
  cancel_timeout_seconds: 120
  free_slots_after_run_end_seconds: 60
run_retries:
  enabled: true
  max_retries: 0
  retry_on_asset_or_op_failure: false
scheduler:
  module: dagster._core.scheduler
  class: DagsterDaemonScheduler
  config:
    max_tick_retries: 10
python_logs:
  python_log_level: INFO
  managed_python_loggers:
    - selectit_dagster
"""


def prepare_dagster_home(folder: Path) -> Path:
    """Make the instance's folder with its settings, once, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        write_text(settings, DAGSTER_YAML)
    return folder


@contextlib.contextmanager
def open_instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance in ``folder``.

    Raises
    ------
    UserError
        When its settings or its database cannot be used.
    """
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    prepare_dagster_home(folder)
    os.environ["DAGSTER_HOME"] = str(folder)
    try:
        instance = _opened(folder)
    except Exception as error:
        if _LOCKED in str(error):
            raise UserError(
                f"another program has held a database in {folder} for a minute",
                hint="end it (a backup, a database's shell) and start again",
            ) from error
        raise UserError(
            f"the Dagster instance in {folder} cannot be opened: "
            # Dagster goes on to list every key that there is
            f"{textwrap.shorten(str(error), 300, placeholder=' …')}",
            hint=f"mend {folder / 'dagster.yaml'}, or choose another home with --home",
        ) from error
    with instance:
        yield instance


def _opened(folder: Path) -> dg.DagsterInstance:
    """Open the instance, waiting a while for a database that another program has locked."""
    import dagster as dg

    deadline = time.monotonic() + _LOCKED_SECONDS
    while True:
        try:
            return dg.DagsterInstance.from_config(str(folder))
        except Exception as error:
            if _LOCKED not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
