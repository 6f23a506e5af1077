"""From YAML or plain data to a checked experiment, with its local paths made absolute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from selectit_dagster.artefacts.address import is_address
from selectit_dagster.errors import UserError, first_line
from selectit_dagster.experiment.schema import Experiment
from selectit_dagster.experiment.validation_messages import describe, shown

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
            f"{path}: an experiment is a mapping of keys to values, found {shown(value)}",
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
        lines = [describe(dict(problem)) for problem in error.errors(include_url=False)]
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

    def walk(node: Any) -> None:  # noqa: ANN401 - nested plain data
        if isinstance(node, dict):
            for key, entry in node.items():
                if key in PATH_KEYS and isinstance(entry, str):
                    node[key] = _local_or_hub(entry, folder)
                elif key == "more" and isinstance(entry, list | tuple):
                    node[key] = tuple(_local_or_hub(path, folder) for path in entry)
                else:
                    walk(entry)
        elif isinstance(node, list | tuple):
            for entry in node:
                walk(entry)

    walk(value)
    return Experiment.model_validate(value)


def named_paths(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - plain data
    """Yield the dotted key and the value of every path that an experiment's plain data names."""
    if isinstance(node, dict):
        for key, value in node.items():
            dotted = f"{prefix}.{key}" if prefix else key
            if key in PATH_KEYS and isinstance(value, str):
                yield dotted, value
            elif key == "more" and isinstance(value, list | tuple):
                yield from ((f"{dotted}.{index}", str(path)) for index, path in enumerate(value))
            else:
                yield from named_paths(value, dotted)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from named_paths(value, f"{prefix}.{index}")


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
