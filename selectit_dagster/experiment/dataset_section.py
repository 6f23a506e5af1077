"""Sections on the data: where they come from, and what is taken out before rating."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from selectit_dagster.artefacts.address import checked_address, is_address
from selectit_dagster.experiment.section import Line, Section


class ColumnMapping(Section):
    """Which columns hold the instruction, the optional input and the response."""

    instruction: Line = Field(description="column with the instruction, prompt or question")
    input: Line | None = Field(None, description="column with further input, if there is one")
    response: Line = Field(description="column with the response, completion or answer")


class DatasetSection(Section):
    """The raw instruction dataset."""

    path: Line = Field(
        description="file, folder of a saved dataset, hub name, or address (s3://bucket/file)"
    )
    format: Literal["auto", "json", "jsonl", "parquet", "csv", "datasets", "hub"] = Field(
        "auto", description="file format; auto looks at the content"
    )
    layout: Literal["auto", "alpaca", "sharegpt", "messages", "columns"] = Field(
        "auto", description="record layout; auto looks at the first records"
    )
    columns: ColumnMapping | None = Field(None, description="column mapping for layout: columns")
    split: Line = Field("train", description="split of a hub or saved dataset")
    revision: Line | None = Field(None, description="hub revision: branch, tag or commit")
    turns: Literal["first-turn", "last-turn", "whole"] = Field(
        "whole", description="how a conversation of several turns becomes one record"
    )
    other_roles: Literal["reject", "keep"] = Field(
        "reject",
        description="turns by neither user nor assistant: reject the record, or keep them as text",
    )
    license: Line = Field("unknown", description="licence of the source, for the dataset card")
    max_reject_share: float = Field(
        0.05, ge=0, le=1, description="above this share of rejected records the run stops"
    )
    limit: int | None = Field(None, ge=1, description="read only the first N records")

    @field_validator("path")
    @classmethod
    def _address_without_secrets(cls, value: str) -> str:
        return checked_address(value) if is_address(value) else value

    @model_validator(mode="after")
    def _columns_layout_needs_columns(self) -> DatasetSection:
        if self.layout == "columns" and self.columns is None:
            raise ValueError("layout: columns needs dataset.columns (instruction, response)")
        return self


class NearDuplicates(Section):
    """MinHash near-duplicate search."""

    enabled: bool = Field(False, description="look for near duplicates")
    threshold: float = Field(0.9, gt=0, le=1, description="Jaccard similarity of word n-grams")
    ngram: int = Field(3, ge=1, le=20, description="words per n-gram")
    permutations: int = Field(128, ge=16, le=1024, description="MinHash permutations")


class CurationSection(Section):
    """Steps between the raw and the curated dataset; each can be switched off."""

    exact_duplicates: bool = Field(True, description="drop later exact duplicates")
    near_duplicates: NearDuplicates = Field(NearDuplicates(), description="near duplicates")
    decontamination: bool = Field(
        True, description="drop records that share n-grams with the experiment's benchmarks"
    )
    decontamination_ngram: int = Field(13, ge=3, le=50, description="words per n-gram")
    empty_responses: Literal["flag", "drop"] = Field("drop", description="blank responses")
    cut_off_responses: Literal["flag", "drop", "ignore"] = Field(
        "flag", description="responses that end in the middle of a sentence"
    )
    refusals: Literal["flag", "drop", "ignore"] = Field("flag", description="refusals")
    rating_injection: Literal["drop", "flag", "ignore"] = Field(
        "drop", description="records whose text addresses the rater"
    )
