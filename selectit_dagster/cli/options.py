"""What several commands share: the experiment in its home, and options that are its keys."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    from selectit_dagster.experiment.section import Section
    from selectit_dagster.orchestration.pipeline import Pipeline

Decorator = Callable[[Callable[..., None]], Callable[..., None]]

EXAMPLE = Path(__file__).resolve().parents[1] / "experiments" / "default.yaml"
PATH = click.Path(path_type=Path)
HOME = click.option("--home", type=PATH, help="Home [$SELECTIT_HOME, ./.selectit].")
EXPERIMENT = click.argument("experiment", required=False, type=PATH)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def open_experiment(experiment: Path | None, home: Path | None) -> Pipeline:
    """Return the pipeline of an experiment, the embedded default when None, in its home."""
    from selectit_dagster.launch.preflight import open_pipeline

    return open_pipeline(experiment or EXAMPLE, home)


def on_experiment(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command EXPERIMENT and --home; it gets their pipeline as its first argument."""

    @EXPERIMENT
    @HOME
    @functools.wraps(command)
    def opened(experiment: Path | None, home: Path | None, **given: Any) -> None:  # noqa: ANN401
        command(open_experiment(experiment, home), **given)

    return opened


def keys_of(section: type[Section], *names: str, defaults: bool = True) -> Decorator:
    """Give a command an option for each of a section's keys; one that is not given is None.

    Type and choices, words and default of the help are the experiment file's. ``-k/num_prompts``
    is a key with a short option.
    """

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        for given in reversed(names):
            short, _, name = given.rpartition("/")
            field = section.model_fields[name]
            text = str(field.description)
            if defaults and field.default is not None:
                text += f" [{field.default}]"
            flags = [*([short] if short else []), f"--{name.replace('_', '-')}"]
            kind = _option_type(field.annotation)
            command = click.option(*flags, name, type=kind, help=f"{text[0].upper()}{text[1:]}.")(
                command
            )
        return command

    return with_options


def _option_type(annotation: Any) -> Any:  # noqa: ANN401 - a typing form
    """Return the type of a key's option: its choices, or int, float or str."""
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    kinds = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
    return getattr(kinds[0], "__origin__", kinds[0])


def must_be_folder(checkpoint: Path) -> None:
    """Refuse a path that is no folder."""
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is not a folder",
            hint="name a folder under checkpoints/ of the home, e.g. checkpoints/selectit/seed-1",
        )
