"""From nested settings and figures to MLflow's flat parameters and metrics."""

from __future__ import annotations

import json
from typing import Any

_MAX_PARAM = 6000  # MLflow's own limit for the value of a parameter


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
