"""Orchestration: the stages as Dagster assets and jobs, and MLflow tracking of each run."""
