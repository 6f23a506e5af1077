"""The Dagster assets: one thin module per stage of the pipeline."""
