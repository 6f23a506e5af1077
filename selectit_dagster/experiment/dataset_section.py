"""Sections on the data: where they come from, and what is taken out before rating."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from selectit_dagster.artefacts.address import checked_address, is_address
from selectit_dagster.experiment.section import Line, Section


class ColumnMapping(Section):
    """Which columns hold the parts of a record; ``meta.question`` is a path through objects."""

    instruction: Line | None = Field(None, description="instruction, prompt or question")
    input: Line | None = Field(None, description="further input, if there is one")
    response: Line | None = Field(None, description="response, completion or answer")
    messages: Line | None = Field(None, description="a conversation, instead of the three above")
    system: Line | None = Field(None, description="system prompt")
    history: Line | None = Field(None, description="earlier turns")
    tools: Line | None = Field(None, description="tools that the answer may call")
    images: Line | None = Field(None, description="images that belong to the record")
    chosen: Line | None = Field(None, description="preferred answer, which is the one rated")
    rejected: Line | None = Field(None, description="the answer that was not preferred")
    id: Line | None = Field(None, description="the record's own id [id]")

    @model_validator(mode="after")
    def _has_question_and_answer(self) -> ColumnMapping:
        if self.messages is None and not (self.chosen or (self.instruction and self.response)):
            raise ValueError("name instruction and response, or messages, or chosen")
        return self


class DatasetSection(Section):
    """The raw instruction dataset."""

    path: Line = Field(
        description="file, folder, pattern (data/*.jsonl) or a list of them; saved dataset, hub "
        "name, or address (s3://bucket/file)"
    )
    more: tuple[Line, ...] = Field(
        (), description="further files, folders or patterns, read after the first"
    )
    format: Literal["auto", "json", "jsonl", "parquet", "csv", "datasets", "hub"] = Field(
        "auto", description="file format; auto looks at the content"
    )
    layout: Literal["auto", "alpaca", "sharegpt", "messages", "columns"] = Field(
        "auto", description="record layout; auto looks at the first records"
    )
    columns: ColumnMapping | None = Field(None, description="column mapping for layout: columns")
    split: Line = Field("train", description="split of a hub or saved dataset: train[:10%]")
    config: Line | None = Field(None, description="configuration of a hub dataset")
    revision: Line | None = Field(None, description="hub revision: branch, tag or commit")
    turns: Literal["first-turn", "last-turn", "whole"] = Field(
        "whole", description="how a conversation of several turns becomes one record"
    )
    other_roles: Literal["reject", "keep"] = Field(
        "reject",
        description="turns by neither user, assistant nor system (tool results and the like): "
        "reject the record, or keep them as text",
    )
    roles: dict[str, Literal["user", "assistant", "system", "other"]] = Field(
        {}, description="what further role names are, e.g. {student: user, teacher: assistant}"
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

    @model_validator(mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """Take a list of paths for the first one and ``more``."""
        if isinstance(value, dict) and isinstance(value.get("path"), list | tuple):
            first, *rest = value["path"] or [""]
            return {**value, "path": first, "more": [*rest, *value.get("more", ())]}
        return value

    @field_validator("more")
    @classmethod
    def _local(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(is_address(path) for path in value):
            raise ValueError("several inputs are local files and folders; an address stands alone")
        return value

    @model_validator(mode="after")
    def _columns_layout_needs_columns(self) -> DatasetSection:
        if self.layout == "columns" and self.columns is None:
            raise ValueError("layout: columns needs dataset.columns (instruction, response)")
        return self


class NearDuplicates(Section):
    """MinHash near-duplicate search; giving the section turns it on."""

    enabled: bool = Field(True, description="look for near duplicates")
    threshold: float = Field(0.9, gt=0, le=1, description="Jaccard similarity of word n-grams")
    ngram: int = Field(3, ge=1, le=20, description="words per n-gram")
    permutations: int = Field(128, ge=16, le=1024, description="MinHash permutations")


class CurationSection(Section):
    """Steps between the raw and the curated dataset; each can be switched off."""

    exact_duplicates: bool = Field(True, description="drop later exact duplicates")
    duplicates_by: Literal["record", "instruction"] | tuple[Line, ...] = Field(
        "record",
        description="what makes two records the same: the whole record, the instruction alone, or "
        "these of instruction, input, response",
    )
    near_duplicates: NearDuplicates = Field(
        NearDuplicates(enabled=False), description="near duplicates: true, false or its settings"
    )
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
        "drop", description="records that tell a rater what to give; a bare verdict only flags"
    )

    @field_validator("near_duplicates", mode="before")
    @classmethod
    def _switched(cls, value: object) -> object:
        return {"enabled": value} if isinstance(value, bool) else value

    @field_validator("duplicates_by")
    @classmethod
    def _known_parts(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        parts = {"instruction", "input", "response"}
        if not isinstance(value, str) and (not value or not set(value) <= parts):
            raise ValueError(f"names some of {', '.join(sorted(parts))}")
        return value
