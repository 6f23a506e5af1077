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

from selectit_dagster.artefacts.files import sha256_file, write_text
from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    import dagster as dg

_LOCKED = "database is locked"
_LOCKED_SECONDS = 60.0
# SHA-256 of the settings that earlier versions wrote
_FORMER = {
    "4df3ae1a03d84cb3",
    "5de26b62be7070c8",
    "faea0720eeb06108",
    "d2e46aa5b13c3c30",
    "e6b1a44edc70b7ea",
    "fe7cab895fde0eec",
    "5f147b5104cd333e",
}
# One model in memory at a time: the default limit of a pool is 1. One run of an experiment at a
# time: two of them would replace each other's inputs between their steps. Run monitoring frees what
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
    max_concurrent_runs: 10
    tag_concurrency_limits:
      - key: selectit/experiment
        value:
          applyLimitPerUniqueValue: true
        limit: 1
run_coordinator:
  module: selectit_dagster.orchestration.run_coordinator
  class: ExperimentRunCoordinator
  config:
    dequeue_interval_seconds: 1
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
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days:
      skipped: 7
      started: 30
      failure: 30
      success: 30
python_logs:
  python_log_level: INFO
  managed_python_loggers:
    - selectit_dagster
"""


def prepare_dagster_home(folder: Path) -> Path:
    """Make the instance's folder with its settings, once, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    # what earlier versions wrote, and nobody edited, is brought up to date
    if not settings.exists() or sha256_file(settings)[:16] in _FORMER:
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
    with _opened(folder) as instance:
        yield instance


def _opened(folder: Path) -> dg.DagsterInstance:
    """Open the instance, waiting a while for a database that another program has locked."""
    import dagster as dg

    deadline = time.monotonic() + _LOCKED_SECONDS
    while True:
        try:
            return dg.DagsterInstance.from_config(str(folder))
        except Exception as error:
            # Dagster goes on to list every key that there is
            said = textwrap.shorten(str(error), 300, placeholder=" …")
            if _LOCKED not in str(error):
                raise UserError(
                    f"the Dagster instance in {folder} cannot be opened: {said}",
                    hint=f"mend {folder / 'dagster.yaml'}, or choose another home with --home",
                ) from error
            if time.monotonic() > deadline:
                raise UserError(
                    f"another program has held a database in {folder} for a minute",
                    hint="end it (a backup, a database's shell) and start again",
                ) from error
            time.sleep(0.5)


def newest(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None
) -> dg.EventLogRecord | None:
    """Return the newest materialisation of an asset, or of one of its partitions."""
    import dagster as dg

    wanted = dg.AssetRecordsFilter(
        asset_key=key, asset_partitions=[partition] if partition else None
    )
    records = instance.fetch_materializations(wanted, limit=1).records
    return records[0] if records else None
