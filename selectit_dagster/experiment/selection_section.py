"""Sections on the choice: how much is kept, and the arms that compete."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from selectit_dagster.experiment.section import Name, Section


class Arm(Section):
    """One way of choosing a subset."""

    kind: Literal[
        "selectit",
        "random",
        "longest",
        "full",
        "token-level",
        "sentence-level",
        "ifd",
        "perplexity",
        "diverse",
    ] = Field(description="the selection rule")
    seeds: tuple[int, ...] = Field((1, 2, 3), description="draws of the random arm")
    model: Name | None = Field(
        None, description="scoring model for ifd, perplexity, diverse, token- and sentence-level"
    )


class SelectionSection(Section):
    """How much is kept, and the arms that compete."""

    share: float | None = Field(None, gt=0, le=1, description="share of the curated records")
    count: int | None = Field(None, ge=1, description="number of records instead of a share")
    threshold: float | None = Field(None, description="lowest score instead of a share")
    arms: tuple[Arm, ...] = Field(
        (Arm(kind="selectit"), Arm(kind="random"), Arm(kind="longest"), Arm(kind="full")),
        min_length=1,
        description="the arms",
    )

    @model_validator(mode="after")
    def _one_size(self) -> SelectionSection:
        given = [v for v in (self.share, self.count, self.threshold) if v is not None]
        if len(given) > 1:
            raise ValueError("give one of share, count and threshold, not several")
        kinds = [arm.kind for arm in self.arms]
        if len(set(kinds)) != len(kinds):
            raise ValueError("each arm may be named once")
        return self

    @property
    def size(self) -> tuple[Literal["share", "count", "threshold"], float]:
        """The size rule and its value; a share of 0.2 when the file gives none."""
        if self.count is not None:
            return "count", self.count
        if self.threshold is not None:
            return "threshold", self.threshold
        return "share", 0.2 if self.share is None else self.share
