"""Fields of one parsed record: text where text belongs, or the field and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Texts = tuple[str, str, str, int]  # instruction, input, response, turns
Extractor = Callable[[dict[str, Any]], Texts]

WHOLE_RECORD = "(record)"

_TYPE_NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
    type(None): "null",
}


class Unusable(Exception):  # noqa: N818 - an outcome that is named, not an error of the run
    """One record that cannot be used: the field and the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


def type_name(value: object) -> str:
    """Return what a parsed value is, in words."""
    return _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


class Excluded(Unusable):
    """One record that its own data say is no example to learn from; no fault of the file."""


def found(record: dict[str, Any], field: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of ``field``: a column, or a path through objects (``meta.question``)."""
    if field in record or "." not in field:
        return record.get(field)
    value: Any = record
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def required_text(record: dict[str, Any], field: str) -> str:
    """Return the text of ``field``, or raise ``Unusable``."""
    value = found(record, field)
    if type(value) is str:
        return value
    if value is None:
        there = found(record, field.rpartition(".")[0]) if "." in field else record
        inside = isinstance(there, dict) and field.rpartition(".")[2] in there
        raise Unusable(field, "is null" if inside or field in record else "is missing")
    raise Unusable(field, f"is {type_name(value)}, expected text")


def optional_text(record: dict[str, Any], field: str | None) -> str:
    """Return the text of ``field``; absent and null both mean that there is none."""
    value = found(record, field) if field is not None else None
    if value is None:
        return ""
    if type(value) is str:
        return value
    raise Unusable(str(field), f"is {type_name(value)}, expected text")
