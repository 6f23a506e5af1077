"""SelectIT as Dagster software-defined assets: rate, fuse, select, tune, evaluate, compare.

The sub-packages follow the data: ``data`` → ``rating`` → ``selection`` → ``tuning`` →
``evaluation`` → ``comparison``. They are plain engines: none of them imports Dagster or
MLflow. ``platform`` assembles them into Dagster definitions, MLflow tracking and the
``selectit`` command. The assets themselves live in the top-level ``assets`` package.
"""

__version__ = "0.1.0"
