"""MLflow, and nothing else in this project opens it.

One parent run per Dagster run, and below it one run per asset, partition and attempt. If
the tracking store fails, the work goes on: each call is tried three times, then noted in
``tracking-failures.jsonl`` in the home, which the summary reports.

The client API is used throughout, never the fluent one: steps may run in threads and in
several processes at once, and a global "active run" would mix them up.
"""

from selectit_dagster.orchestration.tracking.tracked_run import (
    ARM_ROWS,
    TrackedRun,
    flatten,
    numbers,
    record_manifest,
    split_constants,
)
from selectit_dagster.orchestration.tracking.tracker import Tracker

__all__ = [
    "ARM_ROWS",
    "TrackedRun",
    "Tracker",
    "flatten",
    "numbers",
    "record_manifest",
    "split_constants",
]
