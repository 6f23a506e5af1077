"""The system's load while a run goes on: processor, memory, disk, network and GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from selectit_dagster.orchestration.tracking.tracking_store import TrackingStore

_SAMPLE_SECONDS = 10  # between two samples


@contextlib.contextmanager
def sampled(store: TrackingStore, run_id: str | None) -> Iterator[None]:
    """Store samples of the system's load with a run, until the context ends."""
    monitor = None
    if run_id is not None:
        monitor = store.attempt("watch the system", _system_monitor, run_id, store.uri)
    if monitor is None:
        yield
        return
    monitor.start()
    try:
        yield
    finally:
        store.attempt("store system metrics", _last_sample, monitor)


def _system_monitor(run_id: str, uri: str) -> Any:  # noqa: ANN401 - a SystemMetricsMonitor
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    return SystemMetricsMonitor(run_id, sampling_interval=_SAMPLE_SECONDS, tracking_uri=uri)


def _last_sample(monitor: Any) -> None:  # noqa: ANN401 - a SystemMetricsMonitor
    """End the sampling; a run shorter than the interval gets its one sample here."""
    monitor.finish()
    monitor.collect_metrics()
    monitor.publish_metrics(monitor.aggregate_metrics())
    monitor.mlflow_logger.flush()
