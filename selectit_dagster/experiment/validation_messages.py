"""What a refusal says: the path in the file, what was found there and what was expected."""

from __future__ import annotations

import difflib
import reprlib
from typing import Any

from selectit_dagster.experiment.schema import Experiment
from selectit_dagster.experiment.section import Section


class _Form(reprlib.Repr):
    """The form in Python of the beginning of a value, however deep or long all of it is.

    A few anchors in a YAML file make a list of billions, or one that holds itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 8
        self.maxstring = self.maxlong = self.maxother = 1000

    def repr_int(self, x: int, level: int) -> str:
        """Return a whole number; Python writes no very long ones."""
        return hex(x)[:1000] if x.bit_length() > 4000 else repr(x)


_FORM = _Form()


def describe(problem: dict[str, Any]) -> str:
    """Return one line: path in the file, what was found, what was expected."""
    location = ".".join(str(part) for part in problem["loc"]) or "(the whole file)"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(tuple(problem["loc"][:-1]))
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        guess = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{location}: unknown key; {guess}"
    if problem["type"] == "missing":
        return f"{location}: missing; it must be given"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{location}: {message}"
    return f"{location}: found {shown(problem['input'])}, expected: {message}"


def shown(value: Any) -> str:  # noqa: ANN401 - whatever the user wrote
    """Return a value as it is shown in a message: its form in Python, cut where it is long."""
    text = _FORM.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed at ``location`` by walking the models' fields."""
    model: Any = Experiment
    for part in location:
        if isinstance(part, int):
            continue
        # a name that the user chose, as below ray.models, is no field
        if part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation) or model
    return sorted(model.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:  # noqa: ANN401 - a typing form
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None
