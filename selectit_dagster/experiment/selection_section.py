"""Sections on the choice: how much is kept, and the arms that compete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator, model_validator

from selectit_dagster.experiment.section import Section
from selectit_dagster.registry import ARMS

_DEFAULT_ARMS = ("selectit", "random", "longest", "full")
_SIZES = ("share", "count", "tokens", "threshold")


def arm_of(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the arm that an entry of the experiment file describes.

    Raises
    ------
    ValueError
        For an unknown kind; Pydantic's own error, with its path, for a wrong parameter.
    """
    if isinstance(value, Section):
        return value
    if not isinstance(value, dict) or "kind" not in value:
        raise ValueError("an arm is a mapping with a kind, such as {kind: selectit}")
    return ARMS.named(value["kind"], "kind").model_validate(value)


if TYPE_CHECKING:
    from selectit_dagster.selection.arms.arm import Arm as ArmEntry
else:
    ArmEntry = Annotated[Any, PlainValidator(arm_of)]


class SelectionSection(Section):
    """How much is kept, and the arms that compete."""

    share: float | None = Field(
        None, gt=0, le=1, description="share of the curated records; 0.2 without a size"
    )
    count: int | None = Field(None, ge=1, description="number of records instead of a share")
    tokens: int | None = Field(
        None, ge=1, description="token budget instead of a share, as the base model counts"
    )
    threshold: float | None = Field(None, description="lowest score instead of a share")
    quota: dict[str, Any] | None = Field(None, description="quota of the arms without their own")
    diversity: dict[str, Any] | None = Field(None, description="diversity of the arms likewise")
    weights: dict[str, Any] | None = Field(None, description="weights of the arms likewise")
    keep: int = Field(
        20, ge=1, description="versions of each selection to keep, those in use apart"
    )
    review: str | None = Field(
        None, description="marks of people, review.jsonl: they count in the production arm's choice"
    )
    arms: tuple[ArmEntry, ...] = Field(
        default_factory=lambda: tuple(arm_of({"kind": kind}) for kind in _DEFAULT_ARMS),
        min_length=1,
        description="the arms",
    )

    @model_validator(mode="before")
    @classmethod
    def _shared_settings(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """Give each arm what the section says for all, and compared arms their settings."""
        if not isinstance(value, dict) or not isinstance(value.get("arms"), list | tuple):
            return value
        entries = [dict(a) if isinstance(a, dict) else a for a in value["arms"]]
        named = {str(e.get("name", e.get("kind"))): e for e in entries if isinstance(e, dict)}
        for entry in entries:
            if not isinstance(entry, dict) or entry.get("kind") == "full":
                continue
            for part in ("quota", "diversity", "weights"):
                if value.get(part) is not None and entry.get(part) is None:
                    entry[part] = value[part]
            if entry.get("kind") == "random-length" and isinstance(entry.get("like"), str):
                entry["like"] = named.get(entry["like"], entry["like"])
        return {**value, "arms": entries}

    @model_validator(mode="after")
    def _names_and_size(self) -> SelectionSection:
        if sum(getattr(self, size) is not None for size in _SIZES) > 1:
            raise ValueError(f"give one of {', '.join(_SIZES)}, not several")
        names: list[str] = []
        for arm in self.arms:
            names += [arm.name if d is None else f"{arm.name}-{d}" for d in arm.draws]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"two arms are called {doubled[0]!r}: give each arm of one kind a name of its own"
            )
        return self

    @property
    def size(self) -> tuple[str, float]:
        """The size rule and its value; a share of 0.2 when the file gives none."""
        given = [(rule, float(v)) for rule in _SIZES if (v := getattr(self, rule)) is not None]
        return given[0] if given else ("share", 0.2)
