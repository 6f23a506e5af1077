"""Platform: Dagster definitions, MLflow tracking, the command line, the report."""
