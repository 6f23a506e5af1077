"""Sections on what surrounds a run and changes none of its figures: MLflow, storage, schedule."""

from __future__ import annotations

from pydantic import Field, field_validator

from selectit_dagster.experiment.section import Address, Line, Section


class TrackingSection(Section):
    """MLflow."""

    enabled: bool = Field(True, description="track runs in MLflow")
    uri: Line | None = Field(
        None, description="tracking URI; default: $MLFLOW_TRACKING_URI, else sqlite in the home"
    )
    ui_url: Line | None = Field(
        None, description="address under which a browser finds MLflow, for links"
    )
    experiment: Line | None = Field(None, description="MLflow experiment; default: the run's name")


class StorageSection(Section):
    """Where artefacts are published, so that other machines go on from them."""

    url: Address | None = Field(
        None, description="s3://bucket/folder, gs://, file:///...; default: $SELECTIT_STORAGE"
    )
    unfinished_seconds: float | None = Field(
        30.0, gt=0, description="how often finished parts of a stage are sent; null: never"
    )


class ScheduleSection(Section):
    """Scheduled re-selection."""

    cron: Line = Field("0 6 * * 1", description="when the dataset is re-selected")
    timezone: Line = Field("UTC", description="time zone of the cron line")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError("a cron line has five fields: minute hour day month weekday")
        return value
