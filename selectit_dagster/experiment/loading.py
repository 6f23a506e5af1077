"""From YAML or plain data to a checked experiment with absolute paths, or what to mend in it."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from selectit_dagster.artefacts.address import is_address
from selectit_dagster.errors import UserError, first_line
from selectit_dagster.experiment.schema import Experiment
from selectit_dagster.experiment.section import Section

_FILE_SUFFIXES = {".json", ".jsonl", ".csv", ".tsv", ".gz", ".zst", ".parquet", ".txt"}
# keys whose values are files or folders; those of HUB_KEYS may name something on the hub instead
HUB_KEYS = {"path", "adapter"}
PATH_KEYS = HUB_KEYS | {"prompts", "shots_path", "file", "review"}


def load_experiment(path: Path) -> Experiment:
    """Read and check an experiment file.

    Raises
    ------
    UserError
        When the file is missing, not YAML, or breaks a rule; every broken rule is listed
        with its path in the file, what was found and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot read the experiment file {path}: {reason}",
            hint="give the path of a YAML file; `selectit run --help` shows a complete example",
        ) from error
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(
            f"{path}{where}: not valid YAML: {problem}",
            hint="mend the file there; quotes around a text with a colon help",
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: an experiment is a mapping of keys to values, found {_shown(value)}",
            hint="`selectit run --help` shows a complete example",
        )
    return parse_experiment(value, source=str(path), folder=path.resolve().parent)


def parse_experiment(value: dict[str, Any], *, source: str, folder: Path) -> Experiment:
    """Check plain data as an experiment; ``source`` names it in messages."""
    return resolve_paths(check_experiment(value, source=source), folder)


def check_experiment(value: dict[str, Any], *, source: str) -> Experiment:
    """Check plain data as an experiment whose paths stay as they are.

    Raises
    ------
    UserError
        With a line for each thing to mend.
    """
    try:
        return Experiment.model_validate(value)
    except ValidationError as error:
        lines = [_describe(dict(problem)) for problem in error.errors(include_url=False)]
        raise UserError(
            f"{source}: {len(lines)} thing{'s' if len(lines) > 1 else ''} to mend\n"
            + "\n".join(f"  {line}" for line in lines),
            hint="`selectit run --help` shows a complete example with every key",
        ) from error


def resolve_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with its local paths made absolute against ``folder``.

    A value is a local path when it exists there, or cannot be a hub name (it starts with
    ``.``, ``/`` or ``~``, or has more than one slash, or a file ending).
    """
    value = experiment.model_dump(exclude_unset=True)
    return Experiment.model_validate(_each_path(value, lambda _, path: _local_or_hub(path, folder)))


def named_paths(value: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the dotted key and the value of every path that an experiment's plain data names."""
    found: list[tuple[str, str]] = []

    def note(key: str, path: str) -> str:
        found.append((key, path))
        return path

    _each_path(value, note)
    return found


def _each_path(
    node: Any,  # noqa: ANN401 - plain data
    change: Callable[[str, str], str],
    *above: str,
    paths: bool = False,
) -> Any:  # noqa: ANN401 - plain data
    """Return plain data with each path in it as ``change`` gives it, by its dotted key."""
    if isinstance(node, dict):
        return {
            key: _each_path(entry, change, *above, str(key), paths=key in PATH_KEYS)
            for key, entry in node.items()
        }
    if isinstance(node, list | tuple):
        listed = above[-1:] == ("more",)
        return [
            _each_path(entry, change, *above, str(index), paths=listed)
            for index, entry in enumerate(node)
        ]
    return change(".".join(above), node) if paths and isinstance(node, str) else node


def is_hub_name(value: str) -> bool:
    """Tell whether ``value`` has the form of a hub name (``owner/name`` or ``name``)."""
    return (
        not value.startswith((".", "/", "~"))
        and not is_address(value)
        and value.count("/") <= 1
        and "\\" not in value
        and not any(mark in value for mark in "*?[")
        and Path(value).suffix not in _FILE_SUFFIXES
    )


def _local_or_hub(value: str, folder: Path) -> str:
    if is_address(value):
        return value
    path = Path(value).expanduser()
    local = path if path.is_absolute() else folder / path
    if local.exists() or not is_hub_name(value):
        return str(local.resolve())
    return value


# --- what a refusal says: the path in the file, what was found there and what was expected -------


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


def _describe(problem: dict[str, Any]) -> str:
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
    return f"{location}: found {_shown(problem['input'])}, expected: {message}"


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever the user wrote
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
