"""SelectIT as Dagster software-defined assets: rate, fuse, select, tune, evaluate, compare.

The sub-packages follow the data: ``data`` → ``rating`` → ``selection`` → ``tuning`` →
``evaluation`` → ``comparison``. They are plain engines: none of them imports Dagster or
MLflow. ``orchestration``, ``assets`` and ``definitions`` assemble them into Dagster's
definitions and MLflow's tracking, which ``launch`` and ``cli`` start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selectit_dagster.api import Scored, rank, score, select
    from selectit_dagster.launch.component import SelectItComponent

__all__ = ["Scored", "SelectItComponent", "__version__", "rank", "score", "select"]
__version__ = "0.1.0"
_LAZY = {
    "SelectItComponent": "selectit_dagster.launch.component",
    **dict.fromkeys(("Scored", "rank", "score", "select"), "selectit_dagster.api"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - what is asked for
    """Import what is asked for when it is asked for: the engines do not need Dagster."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of this module; Dagster's registry looks here for components."""
    return sorted({*globals(), *__all__})
