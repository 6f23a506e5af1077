"""SelectIT as Dagster software-defined assets: rate, fuse, select, tune, evaluate, compare.

The sub-packages follow the data: ``data`` → ``rating`` → ``selection`` → ``tuning`` →
``evaluation`` → ``comparison``. They are plain engines: none of them imports Dagster or
MLflow. ``platform`` assembles them into Dagster definitions, MLflow tracking and the
``selectit`` command. The assets themselves live in the top-level ``assets`` package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectit_dagster.orchestration.component import SelectItComponent

__all__ = ["SelectItComponent", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> type[SelectItComponent]:
    """Import the Dagster component when it is asked for: the engines do not need Dagster."""
    if name == "SelectItComponent":
        from selectit_dagster.orchestration.component import SelectItComponent

        return SelectItComponent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of this module; Dagster's registry looks here for components."""
    return sorted({*globals(), *__all__})
