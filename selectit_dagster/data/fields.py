"""One parsed record and its fields: text where text belongs, or the field and the reason."""

from __future__ import annotations

from typing import Any, NamedTuple

Texts = tuple[str, str, str, int]  # instruction, input, response, turns

WHOLE_RECORD = "(record)"
MAX_RECORD_BYTES = 16 << 20

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


class Excluded(Unusable):
    """One record that its own data say is no example to learn from; no fault of the file."""


class Row(NamedTuple):
    """A record as a reader yields it.

    ``raw`` are its bytes in the file (of a typed row: its canonical JSON), ``value`` the parsed
    record or why there is none, ``line`` where it starts (0: no lines), ``file`` its name where
    the dataset has several.
    """

    raw: bytes
    value: dict[str, Any] | Unusable
    line: int = 0
    file: str = ""


def too_big(max_bytes: int) -> Unusable:
    """Return the reason for a record above the limit."""
    size = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes} bytes"
    return Unusable(WHOLE_RECORD, f"is larger than {size}")


def type_name(value: object) -> str:
    """Return what a parsed value is, in words."""
    return _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


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
    if field is None or found(record, field) is None:
        return ""
    return required_text(record, field)
