"""From nested settings and figures to MLflow's flat parameters and metrics."""

from __future__ import annotations

import json
from typing import Any

_MAX_PARAM = 6000  # MLflow's own limit for the value of a parameter
# numbers that an engine notes of its settings and of what it was given, not of what came out
_CONSTANTS = frozenset(
    (
        *("accumulation", "adapted_modules", "base_parameters", "batch_tokens", "bytes"),
        *("decontamination.ngram", "determinism", "max_length", "micro_batch_size", "models"),
        *("parameters", "processes", "resamples", "seed", "size", "source", "theta"),
        *("trainable_parameters", "weights_bytes", "workers"),
    )
)


def flatten(value: Any, prefix: str = "") -> dict[str, str]:  # noqa: ANN401 - nested plain data
    """Return nested settings as dotted names with text values, as MLflow's parameters are."""
    if isinstance(value, dict):
        items: dict[str, str] = {}
        for key, entry in value.items():
            items.update(flatten(entry, f"{prefix}.{key}" if prefix else str(key)))
        return items
    if isinstance(value, list | tuple):
        if value and all(isinstance(entry, dict) for entry in value):
            items = {}
            for index, entry in enumerate(value):
                items.update(flatten(entry, f"{prefix}.{entry.get('name', index)}"))
            return items
        return {prefix: json.dumps(list(value))[:_MAX_PARAM]}
    return {prefix: str(value)[:_MAX_PARAM]}


def split_constants(figures: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return what was measured, for charts, and what was set, for parameters."""
    set_ = {
        name: value
        for name, value in figures.items()
        if name in _CONSTANTS or name.split(".")[0] in _CONSTANTS
    }
    return {name: v for name, v in figures.items() if name not in set_}, set_


def numbers(value: Any, prefix: str = "") -> dict[str, float]:  # noqa: ANN401 - nested plain data
    """Return the finite numbers of nested data as dotted metric names."""
    if isinstance(value, bool) or value is None:
        return {}
    if isinstance(value, int | float):
        finite = value == value and abs(value) != float("inf")
        return {prefix: float(value)} if finite and prefix else {}
    if isinstance(value, dict):
        found: dict[str, float] = {}
        for key, entry in value.items():
            found.update(numbers(entry, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {}
