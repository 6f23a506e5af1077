"""What every section of the experiment file is built on: strict models, one-line texts, names."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from selectit_dagster.artefacts.address import checked_address

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


def _no_line_break(value: str) -> str:
    if any(character in value for character in "\r\n\x00"):
        raise ValueError("must be one line")
    return value


Line = Annotated[str, AfterValidator(_no_line_break), Field(min_length=1)]
Address = Annotated[Line, AfterValidator(checked_address)]
Name = Annotated[str, Field(pattern=_NAME)]


def key_part(name: str) -> str:
    """Return a name as a part of an asset key: other characters become underscores."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


class Section(BaseModel):
    """Base of all sections: unknown keys are refused and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
