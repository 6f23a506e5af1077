"""Sections on what surrounds a run and changes no figure: MLflow, storage, schedule, Dagster."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from selectit_dagster.experiment.section import Address, Line, Section

AssetName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
Owner = Annotated[str, Field(pattern=r"^(team:[A-Za-z0-9_.-]+|[^@\s]+@[^@\s]+\.[^@\s]+)$")]
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# the fields of a cron line: from, to, and words for the numbers
_CRON = {
    "minute": (0, 59, ()),
    "hour": (0, 23, ()),
    "day": (1, 31, ()),
    "month": (1, 12, _MONTHS),
    "weekday": (0, 7, _DAYS),
}


class TrackingSection(Section):
    """MLflow."""

    enabled: bool = Field(True, description="track runs in MLflow")
    required: bool = Field(
        False, description="stop when the tracking server cannot be reached; else go on untracked"
    )
    uri: Line | None = Field(
        None, description="tracking URI; default: $MLFLOW_TRACKING_URI, else sqlite in the home"
    )
    ui_url: Line | None = Field(
        None, description="address under which a browser finds MLflow, for links"
    )
    experiment: Line | None = Field(None, description="MLflow experiment; default: the run's name")


class CostSection(Section):
    """What the machine costs, for the plan."""

    per_hour: float | None = Field(None, gt=0, description="price of an hour of this machine")
    currency: Line = Field("$", description="in which it is")


class BudgetSection(Section):
    """What scoring may take before it stops, with what is done kept."""

    hours: float | None = Field(None, gt=0, description="hours of scoring, over all models")
    money: float | None = Field(None, gt=0, description="the same in money, by cost.per_hour")


class StorageSection(Section):
    """Where artefacts are published, so that other machines go on from them."""

    url: Address | None = Field(
        None, description="s3://bucket/folder, gs://, file:///...; default: $SELECTIT_STORAGE"
    )
    unfinished_seconds: float | None = Field(
        30.0, gt=0, description="how often finished parts of a stage are sent; null: never"
    )


class DagsterSection(Section):
    """What Dagster's pages call the assets, and whose they are."""

    selected_asset: AssetName = Field(
        "selected_dataset", description="asset of the arms' subsets, for instance selective_alpaca"
    )
    owners: tuple[Owner, ...] = Field(
        (), description="owners of every asset: team:NAME or an e-mail address"
    )


class ScheduleSection(Section):
    """Scheduled re-selection."""

    cron: Line = Field("0 6 * * 1", description="when the dataset is re-selected")
    timezone: Line = Field("UTC", description="time zone of the cron line")

    @field_validator("cron")
    @classmethod
    def _is_a_cron_line(cls, value: str) -> str:
        if len(fields := value.split()) != len(_CRON):
            raise ValueError("a cron line has five fields: minute hour day month weekday")
        for text, (name, (low, high, words)) in zip(fields, _CRON.items(), strict=True):
            one = "|".join([*(f"0*{number}" for number in range(low, high + 1)), *words])
            entry = rf"(\*|({one})(-({one}))?)(/[1-9]\d*)?"
            if not re.fullmatch(rf"{entry}(,{entry})*", text.lower()):
                raise ValueError(f"{text} is no {name}, which is {low} to {high}")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
            raise ValueError("no time zone of that name; for instance Europe/Berlin") from error
        return value
